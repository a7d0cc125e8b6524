"""A recording as a trace that a person can look at, in the JSON of the Trace Event Format.

ui.perfetto.dev and chrome://tracing open it. Each device is a process with a track for every executor: a slice for
each launch, within it `fill` (requests put into the slots of the launch buffer), `run` (the engine) and `read` (scores
copied out), and above them how many executors were busy. On a GPU, `run` holds what goes between host and device too:
it is part of the captured graph, and the host cannot tell it from the kernels. The process `requests` has the length of
the queue and a track of its own for each request that waits or runs, `queue` and then `compute`. Arrows join the
launches of one request. Times are microseconds since the first of them, to the nanosecond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, pairwise
from operator import attrgetter
from typing import Any

import msgspec

from flame.orchestrator.timeline import LaunchSpan, QueueLength, Recording, RequestSpan

_Event = dict[str, Any]
_Track = tuple[str, int]
"""A device and an executor of it."""

# Perfetto takes process and thread 0 for the idle task, and a thread with the number of its process for the main one.
_REQUESTS = 1
_FIRST_DEVICE = 2
_FIRST_EXECUTOR = 1000

_CHUNK = 256


def encode(recording: Recording) -> Iterator[bytes]:
    """The trace in pieces of at most 256 events, made as they are asked for: who asks may let others work between."""
    yield b'{"displayTimeUnit":"ms","traceEvents":['
    events = _Writer(recording).events()
    before = b""
    while chunk := list(islice(events, _CHUNK)):
        yield before + msgspec.json.encode(chunk)[1:-1]
        before = b",\n"
    yield b"]}\n"


class _Writer:
    """Events of one recording. Parents come before their children, which counts where both begin at one time."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._origin = _first(recording)
        tracks = sorted({(launch.device, launch.executor) for launch in recording.launches})
        devices = sorted({device for device, _ in tracks})
        self._processes = {device: number for number, device in enumerate(devices, _FIRST_DEVICE)}
        self._threads = {track: number for number, track in enumerate(tracks, _FIRST_EXECUTOR)}

    def events(self) -> Iterator[_Event]:
        """All of them; names first."""
        yield from self._names()
        for mark in self._recording.queue:
            yield self._queue(mark)
        for device in self._processes:
            yield from self._busy(device)
        for launch in self._recording.launches:
            yield from self._launch(launch)
        yield from self._arrows()
        for request in self._recording.requests:
            yield from self._request(request)

    def _names(self) -> Iterator[_Event]:
        yield from _process(_REQUESTS, "requests")
        for device, process in self._processes.items():
            yield from _process(process, device)
        for (device, executor), thread in self._threads.items():
            named = {"ph": "M", "pid": self._processes[device], "tid": thread}
            yield named | {"name": "thread_name", "args": {"name": f"executor {executor}"}}
            yield named | {"name": "thread_sort_index", "args": {"sort_index": executor}}

    def _queue(self, mark: QueueLength) -> _Event:
        counts = {"requests": mark.requests, "planned launches": mark.launches}
        return {"ph": "C", "pid": _REQUESTS, "ts": self._us(mark.at), "name": "queue", "args": counts}

    def _busy(self, device: str) -> Iterator[_Event]:
        """How many executors of a device were in a launch; of ends and beginnings at one time, the ends come first."""
        launches = [launch for launch in self._recording.launches if launch.device == device]
        changes = [(launch.ended, -1) for launch in launches] + [(launch.filled, 1) for launch in launches]
        named = {"ph": "C", "pid": self._processes[device], "name": "busy executors"}
        busy = 0
        for at, change in sorted(changes):
            busy += change
            yield named | {"ts": self._us(at), "args": {"executors": busy}}

    def _launch(self, launch: LaunchSpan) -> Iterator[_Event]:
        arguments = {
            "profile": launch.profile,
            "kind": launch.kind,
            "requests": launch.requests,
            "candidates": launch.candidates,
            "padding": launch.slots - launch.candidates,
            "numbers": launch.members,
        } | ({"error": launch.error} if launch.error else {})
        track = self._track(launch)
        yield (
            track
            | self._span(launch.filled, launch.ended)
            | _named("launch", f"{launch.kind} {launch.profile}", arguments)
        )
        marks = (launch.filled, launch.launched, launch.scored, launch.ended)
        for name, (start, end) in zip(("fill", "run", "read"), pairwise(marks), strict=True):
            span = self._span(start, end)
            if span["dur"]:  # one that an error left out would stand behind its launch, not in it
                yield track | span | _named("phase", name)

    def _request(self, request: RequestSpan) -> Iterator[_Event]:
        """Begin and end of a request, and within them of its phases. One without a launch has waited only."""
        arguments = request._asdict()
        for point in ("submitted", "started", "ended"):
            del arguments[point]
        whole = {"pid": _REQUESTS, "tid": _REQUESTS, "cat": "request", "id": request.number}
        started = request.ended if request.started is None else request.started
        phases = [("queue", request.submitted, started), ("compute", started, request.ended)]
        yield whole | {"ph": "b", "ts": self._us(request.submitted), "name": "request", "args": arguments}
        for name, start, end in phases[: 1 if request.started is None else 2]:
            yield whole | {"ph": "b", "ts": self._us(start), "name": name}
            yield whole | {"ph": "e", "ts": self._us(end), "name": name}
        yield whole | {"ph": "e", "ts": self._us(request.ended), "name": "request"}

    def _arrows(self) -> Iterator[_Event]:
        """From launch to launch of each request that had several, in the order in which they ran."""
        left = Counter(chain.from_iterable(launch.members for launch in self._recording.launches))
        begun: set[int] = set()
        for launch in sorted(self._recording.launches, key=attrgetter("filled")):
            for number in launch.members:
                left[number] -= 1
                if number in begun:
                    phase = {"ph": "t"} if left[number] else {"ph": "f", "bp": "e"}
                elif left[number]:
                    phase = {"ph": "s"}
                    begun.add(number)
                else:
                    continue
                arrow = {"ts": self._us(launch.filled), "id": number} | _named("launches", "request")
                yield self._track(launch) | phase | arrow

    def _track(self, launch: LaunchSpan) -> _Event:
        device, executor = launch.device, launch.executor
        return {"pid": self._processes[device], "tid": self._threads[device, executor]}

    def _span(self, start: float, end: float) -> _Event:
        begin = self._ns(start)
        return {"ph": "X", "ts": begin / 1e3, "dur": (self._ns(end) - begin) / 1e3}

    def _us(self, at: float) -> float:
        return self._ns(at) / 1e3

    def _ns(self, at: float) -> int:
        """Whole numbers: what begins where another ends does so in the trace, too."""
        return round((at - self._origin) * 1e9)


def _first(recording: Recording) -> float:
    starts = [launch.filled for launch in recording.launches]
    starts += [request.submitted for request in recording.requests]
    starts += [mark.at for mark in recording.queue]
    return min(starts, default=0.0)


def _process(number: int, name: str) -> Iterable[_Event]:
    named = {"ph": "M", "pid": number}
    yield named | {"name": "process_name", "args": {"name": name}}
    yield named | {"name": "process_sort_index", "args": {"sort_index": number}}


def _named(category: str, name: str, arguments: _Event | None = None) -> _Event:
    return {"cat": category, "name": name} | ({"args": arguments} if arguments else {})
