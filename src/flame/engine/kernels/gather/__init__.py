"""The packed words of a launch, which the GPU itself fetches from where its requests lie in the host's memory.

So the host need not copy requests together, and what a launch is told of a request is its header and three numbers
(`flame.layout`, sources). Programs read over PCIe, 16 KiB each at a time. From 8 to 128 of them it made no
difference that could be told; with some thirty most multiprocessors are left to launches that compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flame.engine.kernels.kernel import Runtime, TritonKernel
from flame.engine.kernels.rows import Selection
from flame.layout import CANDIDATES, LENGTHS, SOURCE_CANDIDATES, SOURCE_CAPACITY, SOURCE_EVENTS, SOURCE_WORDS

if TYPE_CHECKING:
    import torch

    from flame.layout import PackedLayout, RecordLayout

__all__ = ["Gather"]

_PROGRAMS = 32
_CHUNK = 4096
"""Words that a program asks for before it waits for the first of them."""


@dataclass(frozen=True)
class Gather:
    """Fills a launch's words from the host; for requests of one record layout."""

    record: RecordLayout

    @cached_property
    def kernel(self) -> TritonKernel:
        """The kernel, for whoever compiles and loads it."""
        from flame.engine.kernels.gather.triton import gather

        record = self.record
        signature = {"header_from": "i64", "sources": "i64", "words": "*i32"}
        places = (
            "with_events",
            "with_candidates",
            "events_start",
            "event_slots",
            "candidates_start",
            "candidate_slots",
        )
        constants = {
            "HEADER": record.header_words,
            "COUNT_WORD": CANDIDATES,
            "LENGTHS_WORD": LENGTHS,
            "SEQUENCES": record.sequences,
            "EVENT": record.event_words,
            "CANDIDATE": record.candidate_words,
            "EVENTS_FROM": SOURCE_EVENTS,
            "CAPACITY": SOURCE_CAPACITY,
            "CANDIDATES_FROM": SOURCE_CANDIDATES,
            "SOURCE": SOURCE_WORDS,
            "CHUNK": _CHUNK,
        }
        return TritonKernel("gather", gather, signature | dict.fromkeys(places, "i32"), constants, warps=8)

    def launch(
        self,
        runtime: Runtime,
        layout: PackedLayout,
        header: torch.Tensor,
        sources: torch.Tensor,
        words: torch.Tensor,
        select: Selection,
    ) -> None:
        """Enqueues it: headers, and the selected sections, into `words` `[layout.words]` on the device.

        `header` int32 `[users * header words, or more]` and `sources` int64 `[users, SOURCE_WORDS]` are host memory
        that the device reads where it is, as is all that the sources tell of; it is read when the launch runs.
        """
        grid = (max(1, _PROGRAMS // layout.users), layout.users)
        runtime.launch(
            self.kernel,
            grid,
            *(header.data_ptr(), sources.data_ptr(), words),
            *(int(select != "candidates"), int(select != "events")),
            *(layout.events_start, layout.events, layout.candidates_start, layout.candidates),
        )
