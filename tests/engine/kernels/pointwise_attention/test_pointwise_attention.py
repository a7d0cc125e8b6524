"""HSTU's attention against its reference: odd head sizes, dead rows, stale states, any neighbours."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flame.engine.backends.fused.precision import Precision
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.pointwise_attention import (
    AttentionColumns,
    AttentionTile,
    PointwiseAttention,
    attention_tile,
)
from flame.engine.kernels.pointwise_attention.reference import pointwise_attention
from flame.engine.kernels.rows import Header

# Triton's interpreter takes loop bounds out of arrays in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

HEADER = Header(words=5, candidates=1, lengths=2)
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 3e-2}
LAYERS, LAYER, HEADS = 2, 1, 2
SCALE = 0.03


class Shape(NamedTuple):
    users: int
    events: int
    candidates: int
    blocks: int = 1


class Case(NamedTuple):
    """One launch's memory. `lengths` and `counts` of each user; everything that means nothing is NaN."""

    shape: Shape
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    words: Tensor
    rows: Tensor
    own: Tensor
    memory: Tensor
    states: Tensor


def attention(precision: Precision, dims: tuple[int, int], causal: bool, tile: AttentionTile) -> PointwiseAttention:
    a, d = dims[0] * HEADS, dims[1] * HEADS
    columns = AttentionColumns(row=2 * d + a + 3, q_at=d, o_at=d + a, own_row=a + d + 1, k_at=1, v_at=a + 1)
    return PointwiseAttention(HEADER, precision.triton, LAYERS, HEADS, *dims, causal, SCALE, columns, tile)


def case(
    kernel: PointwiseAttention, shape: Shape, lengths: tuple[int, ...], counts: tuple[int, ...], runtime: Runtime
) -> Case:
    columns, dims = kernel.columns, (kernel.attention_dim, kernel.linear_dim)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kernel.precision]
    words = torch.full((shape.users, HEADER.words), 2**30, dtype=torch.int32)
    words[:, 1], words[:, 2] = torch.tensor(counts), torch.tensor(lengths)
    rows = torch.randn(shape.users, 1, shape.events + shape.candidates, columns.row)
    own = torch.randn(shape.users, 1, shape.candidates, columns.own_row)
    body = torch.randn(shape.users, LAYERS * HEADS * sum(dims) * 128)
    keys, values = body_of(body, kernel)
    for user, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        rows[user, :, length : shape.events] = rows[user, :, shape.events + count :] = float("nan")
        own[user, :, count:] = float("nan")
        keys[user, :, :, length:] = values[user, :, :, length:] = float("nan")
    size = torch.finfo(dtype).bits // 8
    memory = torch.zeros(shape.users, 256 // size + body.shape[1], dtype=dtype)
    memory[:, 256 // size :] = body
    memory.view(torch.int32)[:, 0] = 128
    memory.view(torch.int32)[:, 1] = torch.tensor(lengths)
    memory = memory.to(runtime.device)
    states = torch.tensor([state.data_ptr() for state in memory], device=runtime.device)
    rows, own = rows.to(runtime.device, dtype), own.to(runtime.device, dtype)
    return Case(shape, lengths, counts, words.to(runtime.device), rows, own, memory, states)


def body_of(body: Tensor, kernel: PointwiseAttention) -> tuple[Tensor, Tensor]:
    """Keys and values `[users, layers, heads, slots, dim]` as views of bodies."""
    split = LAYERS * HEADS * kernel.attention_dim * 128
    keys = body[:, :split].view(-1, LAYERS, HEADS, 128, kernel.attention_dim)
    return keys, body[:, split:].view(-1, LAYERS, HEADS, 128, kernel.linear_dim)


def heads(x: Tensor, at: int, dim: int) -> Tensor:
    """Columns from `at` on of rows `[rows, columns]` as `[heads, rows, dim]`."""
    return x[:, at : at + HEADS * dim].view(-1, HEADS, dim).transpose(0, 1)


def wanted(kernel: PointwiseAttention, made: Case, user: int) -> tuple[Tensor, Tensor]:
    """o of a user's live events and candidates `[rows, heads * linear dim]`."""
    columns, a, d = kernel.columns, kernel.attention_dim, kernel.linear_dim
    length, count, events = made.lengths[user], made.counts[user], made.shape.events
    body = made.memory.cpu()[:, -LAYERS * HEADS * (a + d) * 128 :]
    keys, values = (part[user, LAYER, :, :length] for part in body_of(body, kernel))
    rows, own = made.rows.cpu()[user, 0], made.own.cpu()[user, 0, :count]
    options = {"causal": kernel.causal, "scale": kernel.scale}
    event = pointwise_attention(heads(rows[:length], columns.q_at, a), keys, values, None, **options)
    itself = heads(own, columns.k_at, a), heads(own, columns.v_at, d)
    queries = heads(rows[events : events + count], columns.q_at, a)
    candidate = pointwise_attention(queries, keys, values, itself, **options)
    return event.transpose(0, 1).flatten(1), candidate.transpose(0, 1).flatten(1)


def launch(kernel: PointwiseAttention, made: Case, runtime: Runtime, select: str = "all") -> Tensor:
    kernel.launch(runtime, made.shape, made.words, made.states, made.rows, made.own, layer=LAYER, select=select)
    at = kernel.columns.o_at
    return made.rows.cpu()[:, 0, :, at : at + HEADS * kernel.linear_dim]


def assert_close(kernel: PointwiseAttention, made: Case, got: Tensor, precision: Precision) -> None:
    """All live rows, by the largest o of the launch: that of a row with one key may be as small as silu gets."""
    events = made.shape.events
    pairs = []
    for user, (length, count) in enumerate(zip(made.lengths, made.counts, strict=True)):
        event, candidate = wanted(kernel, made, user)
        pairs += [(got[user, :length], event), (got[user, events : events + count], candidate)]
    found, want = (torch.cat(rows).float() for rows in zip(*pairs, strict=True))
    error = (found - want).abs().max() / want.abs().max()
    assert error < TOLERANCE[precision.name], f"error {error}"


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("dims", [(10, 14), (32, 16)], ids=str)
@pytest.mark.parametrize("tile", [AttentionTile(64, 16, 4, 2), AttentionTile(32, 64, 4, 1)], ids=str)
def test_rows_see_their_history_and_candidates_themselves(runtime, precision, causal, dims, tile) -> None:
    kernel = attention(precision, dims, causal, tile)
    made = case(kernel, Shape(4, 128, 64), (37, 128, 0, 16), (5, 64, 3, 0), runtime)
    assert_close(kernel, made, launch(kernel, made, runtime), precision)


@pytest.mark.parametrize("select", ["events", "candidates"])
def test_selected_rows_have_the_bits_of_a_launch_of_all(runtime, precision, select) -> None:
    kernel = attention(precision, (10, 14), True, attention_tile(14, precision.name, 90))
    made = case(kernel, Shape(2, 128, 64), (77, 128), (64, 9), runtime)
    part = launch(kernel, made._replace(rows=made.rows.clone()), runtime, select)
    got = launch(kernel, made, runtime)
    for user in range(2):
        chosen = slice(0, made.lengths[user]) if select == "events" else slice(128, 128 + made.counts[user])
        assert part[user, chosen].equal(got[user, chosen])
        assert not part[user].equal(got[user])


def test_a_candidate_has_the_same_bits_in_any_slot_of_any_launch(runtime, precision) -> None:
    kernel = attention(precision, (10, 14), True, attention_tile(14, precision.name, 90))
    made = case(kernel, Shape(1, 128, 64), (90,), (50,), runtime)
    other = case(kernel, Shape(2, 0, 128), (3, 90), (128, 100), runtime)
    other.memory[1] = made.memory[0]
    turned = torch.arange(49, -1, -1)
    other.rows[1, 0, 41:91] = made.rows[0, 0, 128 + turned]
    other.own[1, 0, 41:91] = made.own[0, 0, turned]
    got, moved = launch(kernel, made, runtime), launch(kernel, other, runtime, "candidates")
    assert moved[1, 41:91].equal(got[0, 128 + turned])


@pytest.mark.gpu
def test_large_heads_compiled(runtime, precision) -> None:
    """The shape of the public models: heads of 128."""
    kernel = attention(precision, (128, 128), True, attention_tile(128, precision.name, 90))
    made = case(kernel, Shape(3, 128, 128), (128, 100, 1), (128, 77, 64), runtime)
    assert_close(kernel, made, launch(kernel, made, runtime), precision)
