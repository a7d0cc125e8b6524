"""Requests that lie anywhere in the host's memory, gathered into the words of a launch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flame.engine.kernels.gather import Gather
from flame.engine.kernels.kernel import Runtime
from flame.engine.presets import preset
from flame.layout import (
    CANDIDATES,
    LENGTHS,
    SOURCE_CANDIDATES,
    SOURCE_CAPACITY,
    SOURCE_EVENTS,
    SOURCE_WORDS,
    PackedLayout,
    RecordLayout,
)

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

RECORDS = {name: RecordLayout.of(preset(name).input) for name in ("tiny-climber-bias", "tiny-hstu")}
UNWRITTEN = -77


class Case:
    """A launch of `users` slots with requests in memory of their own; `first` candidates of each are passed over."""

    def __init__(self, record: RecordLayout, users: int, events: int, candidates: int, runtime: Runtime) -> None:
        generator = np.random.default_rng(users * events + candidates)
        self.layout = PackedLayout(record, users, events, candidates)
        pin = runtime.device.type == "cuda"
        self.header = torch.zeros(users * record.header_words, dtype=torch.int32, pin_memory=pin)
        self.sources = torch.full((users, SOURCE_WORDS), 8, dtype=torch.int64, pin_memory=pin)
        self.requests: list[Tensor] = []
        self.wanted = np.full(self.layout.words, UNWRITTEN, np.int32)
        self.lengths = np.zeros((users, record.sequences), np.int64)
        self.counts = np.zeros(users, np.int64)
        rows = self.header.numpy().reshape(users, -1)
        # The last slot is not in use: its source is an address that nobody may read.
        for slot in range(max(1, users - 1)):
            capacity, held = int(generator.integers(1, events + 30)), int(generator.integers(1, candidates + 9))
            own = PackedLayout(record, 1, capacity, held)
            request = torch.randint(-(2**31), 2**31 - 1, (own.words,), dtype=torch.int32)
            request = request.pin_memory() if pin else request
            self.requests.append(request)
            first = int(generator.integers(0, held))
            rows[slot] = generator.integers(1, 1000, record.header_words)
            self.counts[slot] = rows[slot, CANDIDATES] = min(held - first, candidates)
            self.lengths[slot] = rows[slot, record.lengths] = generator.integers(
                0, min(capacity, events) + 1, record.sequences
            )
            address = request.data_ptr()
            self.sources[slot, SOURCE_EVENTS] = address + 4 * own.events_start
            self.sources[slot, SOURCE_CAPACITY] = capacity
            self.sources[slot, SOURCE_CANDIDATES] = address + 4 * (
                own.candidates_start + first * record.candidate_words
            )
            self._want(slot, own.views(request.numpy()), first)
        self.layout.views(self.wanted).header[:] = rows

    def _want(self, slot: int, request, first: int) -> None:
        views, count = self.layout.views(self.wanted), self.counts[slot]
        for sequence, length in enumerate(self.lengths[slot]):
            views.events[slot, sequence, :length] = request.events[0, sequence, :length]
        views.candidates[slot, :count] = request.candidates[0, first : first + count]

    def gathered(self, runtime: Runtime, select: str) -> np.ndarray:
        words = torch.full((self.layout.words,), UNWRITTEN, dtype=torch.int32, device=runtime.device)
        Gather(self.layout.record).launch(runtime, self.layout, self.header, self.sources, words, select)
        return words.cpu().numpy()


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("users", [1, 2, 5, 33])
@pytest.mark.parametrize(("events", "candidates"), [(1, 1), (37, 23), (700, 300)])
def test_a_launch_has_what_its_requests_have_and_no_word_more(runtime, record, users, events, candidates) -> None:
    if users == 33 and events == 700 and runtime.device.type == "cpu":
        events, candidates = 120, 60
    case = Case(record, users, events, candidates, runtime)
    assert (case.gathered(runtime, "all") == case.wanted).all()


@pytest.mark.parametrize(("select", "start", "stop"), [("events", 1, 2), ("candidates", 2, 3)])
def test_of_a_section_that_is_not_asked_for_nothing_is_read(runtime, select, start, stop) -> None:
    case = Case(RECORDS["tiny-climber-bias"], 3, 37, 23, runtime)
    unasked = SOURCE_CANDIDATES if select == "events" else SOURCE_EVENTS
    case.sources[:, unasked] = 8
    found = case.layout.views(case.gathered(runtime, select))
    wanted = case.layout.views(case.wanted)
    for section in range(3):
        asked = section == 0 or start <= section < stop
        assert (found[section] == (wanted[section] if asked else UNWRITTEN)).all()


def test_the_words_themselves_are_a_source(runtime) -> None:
    layout = PackedLayout(RECORDS["tiny-climber-bias"], 3, 37, 23)
    words = torch.randint(1, 1000, (layout.words,), dtype=torch.int32)
    words = words.pin_memory() if runtime.device.type == "cuda" else words
    views = layout.views(words.numpy())
    views.header[:, CANDIDATES], views.header[:, LENGTHS : LENGTHS + layout.record.sequences] = 23, 37
    sources = torch.from_numpy(layout.sources(words.numpy()))
    sources = sources.pin_memory() if runtime.device.type == "cuda" else sources
    found = torch.zeros(layout.words, dtype=torch.int32, device=runtime.device)
    Gather(layout.record).launch(runtime, layout, words, sources, found, "all")
    for one, other in zip(layout.views(found.cpu().numpy()), views, strict=True):
        assert (one == other).all()
