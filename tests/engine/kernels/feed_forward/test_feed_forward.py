"""The feed-forward half with the next projection: both wirings, padded sizes, and garbage in all dead rows."""

from __future__ import annotations

import math

import pytest
import torch

from flame.engine.backends.fused.precision import Precision
from flame.engine.kernels.feed_forward import FeedForward, Pieces, ProjectionMemory
from flame.engine.kernels.feed_forward.reference import Affine, feed_forward, linear
from flame.engine.kernels.kernel import Runtime
from flame.engine.kernels.rows import Header

# The interpreter takes the bounds of a loop out of arrays of one element.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

HEADER = Header(words=7, candidates=1, lengths=2)
LAYERS, EVENTS, CANDIDATES, CAPACITY = 3, 128, 64, 256
LENGTHS, COUNTS = [[37, 0], [1, 64]], [33, 0]
TOLERANCE = {"fp32": 1e-5, "fp16": 8e-3, "bf16": 6e-2}


class Launch:
    """Random inputs and weights, and everything a launch writes filled with NaN."""

    def __init__(self, runtime: Runtime, precision: Precision, dim: int, heads: int, ffn: int, norm_last: bool) -> None:
        self.runtime, self.precision = runtime, precision
        self.sizes = FeedForward(HEADER, precision.triton, LAYERS, 2, heads, dim, ffn, norm_last, rows=32, chunk=16)
        generator = torch.Generator().manual_seed(3)

        def affine(outputs: int, inputs: int) -> Affine:
            weight = torch.randn(2, outputs, inputs, generator=generator) / math.sqrt(inputs)
            return self._rounded(weight), torch.randn(2, outputs, generator=generator)

        self.ffn_in, self.ffn_out, self.qkv = affine(ffn, dim), affine(dim, ffn), affine(3 * dim, dim)
        self.norm = (torch.randn(2, dim, generator=generator), torch.randn(2, dim, generator=generator))
        rows = torch.randn(2, 2, 2, EVENTS + CANDIDATES, dim, generator=generator)
        for user, count in enumerate(COUNTS):
            for block, length in enumerate(LENGTHS[user]):
                rows[:, user, block, length:EVENTS] = math.nan
                rows[:, user, block, EVENTS + count :] = math.nan
        self.inputs, self.x = self._rounded(rows)
        self.states = torch.full((2, 64 + self.state_words), -1, dtype=torch.int32)
        self.states[:, 0] = CAPACITY
        self.states[:, 1:3] = torch.tensor(LENGTHS)
        self.states = self.states.to(runtime.device)
        words = torch.full((2, 7), -9, dtype=torch.int32)
        words[:, 1] = torch.tensor(COUNTS)
        addresses = torch.tensor([state.data_ptr() for state in self.states], device=runtime.device)
        queries, own = torch.full((2, 2, 192, dim), math.nan), torch.full((2, 2, CANDIDATES, 2 * dim), math.nan)
        self.memory = ProjectionMemory(self.put(queries), self.put(own), addresses, words.to(runtime.device))

    @property
    def state_words(self) -> int:
        return 2 * LAYERS * 2 * self.sizes.dim * CAPACITY * self.precision.dtype.itemsize // 4

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.precision.dtype).float()

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.runtime.device, self.precision.dtype, copy=True)

    def on_device(self, layer: Affine) -> Affine:
        return layer[0].to(self.runtime.device), layer[1].to(self.runtime.device)

    def half(self, layer: int, rows: range, *, project: bool) -> torch.Tensor:
        """Runs the half of `layer`: the `x` after it."""
        x = self.put(self.x)
        layers = [self.on_device(each) for each in (self.ffn_in, self.ffn_out, self.norm)]
        weights = self.sizes.pack(layers[0], layers[1], layers[2], self.precision.dtype)
        following = self.sizes.pack_projection(*self.on_device(self.qkv), self.precision.dtype) if project else None
        inputs = self.put(self.inputs) if self.sizes.norm_last else x
        self.sizes.launch(self.runtime, inputs, x, weights, following, self.memory, layer, events=EVENTS, rows=rows)
        return x

    def expected(self) -> torch.Tensor:
        inputs = self.inputs if self.sizes.norm_last else self.x
        return feed_forward(inputs, self.x, self.ffn_in, self.ffn_out, self.norm, norm_last=self.sizes.norm_last)

    def close(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        tolerance = TOLERANCE[self.precision.name]
        torch.testing.assert_close(found.cpu().float(), wanted, atol=tolerance, rtol=tolerance)

    def check_rows(self, found: torch.Tensor, wanted: torch.Tensor, *, events: bool, candidates: bool) -> None:
        """Compares the live rows of both kinds."""
        for user, count in enumerate(COUNTS):
            for block, length in enumerate(LENGTHS[user]):
                if events:
                    self.close(found[user, block, :length], wanted[user, block, :length])
                if candidates:
                    live = slice(EVENTS, EVENTS + count)
                    self.close(found[user, block, live], wanted[user, block, live])

    def check_projections(self, x: torch.Tensor, layer: int) -> None:
        """Queries, keys and values of `layer` are those of `x`; the last layer has no queries of events."""
        wanted = linear(x, self.qkv)
        dim, heads = self.sizes.dim, self.sizes.heads
        self.check_rows(self.memory.queries, wanted[..., :dim], events=layer < LAYERS - 1, candidates=True)
        if layer == LAYERS - 1:
            assert self.memory.queries[:, :, :EVENTS].isnan().all()
        past = self.states[:, 64:].contiguous().view(self.precision.dtype)
        past = past.view(2, 2, LAYERS, 2, heads, CAPACITY, dim // heads)[:, :, layer].cpu()
        for user, count in enumerate(COUNTS):
            for block, length in enumerate(LENGTHS[user]):
                own = wanted[user, block, EVENTS : EVENTS + count, dim:]
                self.close(self.memory.own[user, block, :count], own)
                both = wanted[user, block, :length, dim:].view(length, 2, heads, dim // heads).permute(1, 2, 0, 3)
                self.close(past[user, :, block, :, :length], both)


ALL = range(EVENTS + CANDIDATES)


@pytest.mark.parametrize("norm_last", [False, True])
@pytest.mark.parametrize(("dim", "heads", "ffn"), [(24, 2, 40), (48, 3, 64), (36, 3, 20)])
def test_the_half_and_the_next_projection(
    runtime: Runtime, precision: Precision, dim: int, heads: int, ffn: int, norm_last: bool
) -> None:
    launch = Launch(runtime, precision, dim, heads, ffn, norm_last)
    found = launch.half(0, ALL, project=True)
    launch.check_rows(found, launch.expected(), events=True, candidates=True)
    launch.check_projections(launch.expected(), layer=1)


def test_the_last_projection_has_no_queries_of_events(runtime: Runtime, precision: Precision) -> None:
    launch = Launch(runtime, precision, 24, 2, 40, norm_last=False)
    launch.half(LAYERS - 2, ALL, project=True)
    launch.check_projections(launch.expected(), layer=LAYERS - 1)


def test_the_last_half_takes_candidates_alone(runtime: Runtime, precision: Precision) -> None:
    launch = Launch(runtime, precision, 24, 2, 40, norm_last=False)
    found = launch.half(LAYERS - 1, range(EVENTS, EVENTS + CANDIDATES), project=False)
    launch.check_rows(found, launch.expected(), events=False, candidates=True)
    assert torch.equal(found[:, :, :EVENTS].nan_to_num(7.0), launch.put(launch.x)[:, :, :EVENTS].nan_to_num(7.0))
    assert launch.memory.queries.isnan().all()


def test_the_first_projection(runtime: Runtime, precision: Precision) -> None:
    launch = Launch(runtime, precision, 36, 3, 40, norm_last=False)
    weights = launch.sizes.pack_projection(*launch.on_device(launch.qkv), precision.dtype)
    launch.sizes.project(runtime, launch.put(launch.x), weights, launch.memory, 0, events=EVENTS, rows=ALL)
    launch.check_projections(launch.x, layer=0)


def test_rows_are_cut_into_few_pieces_with_little_padding() -> None:
    assert [Pieces.of(dim).sizes for dim in (12, 24, 36, 64, 96, 112, 128)] == [
        (16,), (32,), (32, 16), (64,), (64, 32), (64, 32, 16), (128,),
    ]  # fmt: skip
