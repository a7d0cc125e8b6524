"""Softmax attention against states: every option, odd sizes, and garbage wherever nothing may be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from flame.engine.backends.fused.precision import PRECISIONS, Precision
from flame.engine.kernels.attention import Attention, BiasSizes, BiasTables, Memory
from flame.engine.kernels.attention.reference import attention, bias_of
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.rows import Header

# The interpreter takes the bounds of a loop out of arrays of one element.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

HEADER = Header(words=7, candidates=1, lengths=2)
SCENARIOS, LAYERS, LAYER, EVENTS, CANDIDATES = 3, 2, 1, 128, 64
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}


class Case(NamedTuple):
    """One launch: what it works on, and what it depends on for the reference."""

    sizes: Attention
    memory: Memory
    tables: BiasTables | None
    lengths: list[list[int]]
    counts: list[int]
    scenarios: list[int]
    past: list[torch.Tensor]
    ages: list[torch.Tensor]


def made(
    runtime: Runtime,
    precision: Precision,
    lengths: list[list[int]],
    counts: list[int],
    *,
    heads: int = 2,
    head_dim: int = 12,
    causal: bool = False,
    residual: bool = True,
    bias: BiasSizes | None = None,
    capacity: int = 256,
    rows: int = 32,
    keys: int = 32,
) -> Case:
    """Random inputs; everything that is not live is NaN."""
    users, blocks, dim = len(counts), len(lengths[0]), heads * head_dim
    generator = torch.Generator().manual_seed(7)
    sizes = Attention(
        HEADER, precision.triton, LAYERS, blocks, heads, head_dim, SCENARIOS, causal, residual, bias, 0, rows, keys
    )

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, queries = random(users, blocks, EVENTS + CANDIDATES, dim), random(users, blocks, EVENTS + CANDIDATES, dim)
    own = random(users, blocks, CANDIDATES, 2 * dim)
    past = [random(2, LAYERS, blocks, heads, capacity, head_dim) for _ in range(users)]
    ages = [torch.randint(0, 2**31 - 1, (blocks, capacity), generator=generator, dtype=torch.int32) for _ in past]
    for user, count in enumerate(counts):
        own[user, :, count:] = math.nan
        for block, length in enumerate(lengths[user]):
            for tensor in (x, queries):
                tensor[user, block, length:EVENTS] = math.nan
                tensor[user, block, EVENTS + count :] = math.nan
            past[user][:, :, block, :, length:] = math.nan
            ages[user][block] >>= torch.randint(0, 31, (capacity,), generator=generator)
            ages[user][block, length:] = -5
    scenarios = [user % SCENARIOS for user in range(users)]
    words = torch.full((users, HEADER.words), -9, dtype=torch.int32)
    words[:, 0], words[:, 1] = torch.tensor(scenarios), torch.tensor(counts)
    states = [_state(sizes, state, age, each) for state, age, each in zip(past, ages, lengths, strict=True)]
    states = [state.to(runtime.device) for state in states]
    _KEPT.append(states)
    tables = None
    if bias:
        shapes = ((blocks, heads, 2 * bias.reach + 1), (blocks, heads, bias.buckets), (blocks, heads, SCENARIOS))
        tables = BiasTables(*(random(*shape).to(runtime.device) for shape in shapes))
    addresses = torch.tensor([state.data_ptr() for state in states], device=runtime.device)
    tensors = [tensor.to(runtime.device, precision.dtype) for tensor in (queries, own, x)]
    scales = random(blocks, SCENARIOS).abs().add(0.2).to(runtime.device)
    out = torch.full_like(tensors[2], math.nan)
    memory = Memory(*tensors, out, addresses, words.to(runtime.device), scales)
    return Case(sizes, memory, tables, lengths, counts, scenarios, past, ages)


_KEPT: list[list[torch.Tensor]] = []
"""Memory of states: launches know addresses alone."""


def _state(sizes: Attention, past: torch.Tensor, ages: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    header = torch.zeros(64, dtype=torch.int32)
    header[0] = past.shape[4]
    header[1 : 1 + len(lengths)] = torch.tensor(lengths)
    dtype = next(precision.dtype for precision in PRECISIONS.values() if precision.triton == sizes.precision)
    parts = [header, past.to(dtype)] + ([ages] if sizes.bias else [])
    memory = torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])
    assert len(memory) == 256 + sizes.state_bytes(past.shape[4])
    return memory


def expected(case: Case, user: int, block: int, *, candidates: bool) -> torch.Tensor:
    """What the reference makes of the live rows: `[rows, dim]`."""
    sizes, memory = case.sizes, case.memory
    length, count = case.lengths[user][block], case.counts[user]
    rows = slice(EVENTS, EVENTS + count) if candidates else slice(0, length)

    def split(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu().float().unflatten(-1, (-1, sizes.head_dim)).transpose(0, 1)

    dtype = memory.queries.dtype
    keys, values = (case.past[user][part, LAYER, block, :, :length].to(dtype).float() for part in (0, 1))
    queries = split(memory.queries[user, block, rows])
    own = split(memory.own[user, block, :count]).unflatten(0, (2, sizes.heads)) if candidates else None
    bias = own_bias = None
    if case.tables:
        positions, times, scales = (table[block].cpu() for table in case.tables)
        slots, ages = torch.arange(length), case.ages[user][block, :length].long()
        here = (torch.full((count,), length), torch.zeros(count).long()) if candidates else (slots, ages)
        factor = scales[:, case.scenarios[user]]
        bias = factor[:, None, None] * bias_of(positions, times, here, (slots, ages))
        own_bias = factor * (positions[:, sizes.bias.reach] + times[:, 0]) if sizes.bias else None
    scale = memory.scales[block, case.scenarios[user]].cpu()
    causal = sizes.causal and not candidates
    found = attention(queries, keys, values, own, scale, causal=causal, bias=bias, own_bias=own_bias)
    flat = found.transpose(0, 1).flatten(1)
    return flat + memory.x[user, block, rows].cpu().float() if sizes.residual else flat


def check(runtime: Runtime, precision: Precision, case: Case, rows: range = range(EVENTS + CANDIDATES)) -> None:
    """Launches and compares all live rows; rows of tiles outside `rows` have to be left alone."""
    case.sizes.launch(runtime, case.memory, case.tables, LAYER, events=EVENTS, rows=rows)
    out = case.memory.out.cpu().float()
    for user, count in enumerate(case.counts):
        for block, length in enumerate(case.lengths[user]):
            for candidates, first, live in ((False, 0, length), (True, EVENTS, count)):
                found = out[user, block, first : first + live]
                if first not in rows:
                    assert found.isnan().all()
                    continue
                wanted = expected(case, user, block, candidates=candidates)
                torch.testing.assert_close(
                    found, wanted, atol=4 * TOLERANCE[precision.name], rtol=4 * TOLERANCE[precision.name]
                )


LENGTHS = [[37, 0], [64, 1], [5, 33]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [None, BiasSizes(9, 12)])
def test_events_and_candidates_of_odd_lengths(
    runtime: Runtime, precision: Precision, causal: bool, bias: BiasSizes | None
) -> None:
    check(runtime, precision, made(runtime, precision, LENGTHS, [3, 40, 0], causal=causal, bias=bias))


@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_head_dims(runtime: Runtime, precision: Precision, head_dim: int) -> None:
    check(runtime, precision, made(runtime, precision, [[50]], [33], heads=1, head_dim=head_dim))


def test_candidates_alone_leave_events_alone(runtime: Runtime, precision: Precision) -> None:
    case = made(runtime, precision, [[40, 3]], [20], residual=False)
    check(runtime, precision, case, range(EVENTS, EVENTS + CANDIDATES))


def test_events_alone_leave_candidates_alone(runtime: Runtime, precision: Precision) -> None:
    check(runtime, precision, made(runtime, precision, [[40, 3]], [20]), range(EVENTS))


def test_time_buckets_are_exact_at_powers_of_two(runtime: Runtime, precision: Precision) -> None:
    case = made(runtime, precision, [[62]], [1], heads=1, bias=BiasSizes(2, 40))
    edges = np.array([edge for power in range(31) for edge in (2**power - 2, 2**power - 1)]).clip(0)
    ages = case.ages[0]
    ages[0, :62] = torch.from_numpy(edges.astype(np.int32))
    memory = _state(case.sizes, case.past[0], ages, [62]).to(runtime.device)
    case.memory.states[0] = memory.data_ptr()
    check(runtime, precision, case)


def test_a_candidate_is_the_same_bits_in_any_slot_and_launch(runtime: Runtime, precision: Precision) -> None:
    case = made(runtime, precision, [[45, 9]], [40], bias=BiasSizes(9, 12))
    launch: Callable[[Case, range], None] = lambda each, rows: each.sizes.launch(  # noqa: E731
        runtime, each.memory, each.tables, LAYER, events=EVENTS, rows=rows
    )
    launch(case, range(EVENTS + CANDIDATES))
    together = case.memory.out[0, :, EVENTS : EVENTS + 40].clone()
    order = torch.arange(39, -1, -1, device=runtime.device)
    for tensor in (case.memory.queries, case.memory.x, case.memory.out):
        tensor[0, :, EVENTS : EVENTS + 40] = tensor[0, :, EVENTS + order]
    case.memory.own[0, :, :40] = case.memory.own[0, :, order]
    case.memory.out.fill_(math.nan)
    launch(case, range(EVENTS, EVENTS + CANDIDATES))
    assert torch.equal(case.memory.out[0, :, EVENTS + order], together)
