"""Reads a Chrome trace as Perfetto does, and holds it to the rules of the Trace Event Format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
Track = tuple[int, int]


@dataclass
class Span:
    """A slice, or an asynchronous event, with what lies in it; times in nanoseconds."""

    name: str
    start: int
    end: int
    args: Event
    inner: list[Span] = field(default_factory=list)


@dataclass
class Trace:
    """A trace that kept the rules: names, outermost slices by track, asynchronous events by id, and counters."""

    processes: dict[int, str]
    threads: dict[Track, str]
    slices: dict[Track, list[Span]]
    requests: dict[int, Span]
    counters: dict[tuple[int, str], list[tuple[int, dict[str, int]]]]
    flows: dict[int, list[Track]]


def read(content: bytes) -> Trace:
    """The trace; an `AssertionError` says which rule it breaks."""
    document = json.loads(content)
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = document["traceEvents"]
    for event in events:
        _check_fields(event)
    # Perfetto sorts by time, and leaves events of one time in the order of the file.
    timed = sorted((event for event in events if event["ph"] != "M"), key=lambda event: event["ts"])
    trace = Trace(*_names(events), _slices(timed), _requests(timed), _counters(timed), {})
    trace.flows.update(_flows(timed, trace.slices))
    assert {event["pid"] for event in events} <= trace.processes.keys(), "a process has no name"
    assert trace.slices.keys() <= trace.threads.keys(), "a thread has no name"
    return trace


def _check_fields(event: Event) -> None:
    assert event["ph"] in set("MXCbestf"), event
    assert isinstance(event["name"], str)
    assert isinstance(event["pid"], int)
    assert event["pid"] > 0
    if event["ph"] == "M":
        return
    assert isinstance(event["ts"], int | float)
    assert event["ts"] >= 0
    if event["ph"] == "C":
        assert event["args"]
        assert all(isinstance(value, int) and value >= 0 for value in event["args"].values()), event
        return
    assert isinstance(event["tid"], int)
    assert event["tid"] > 0
    assert isinstance(event["cat"], str)
    if event["ph"] == "X":
        assert event["dur"] >= 0, event
    else:
        assert isinstance(event["id"], int)


def _names(events: list[Event]) -> tuple[dict[int, str], dict[Track, str]]:
    processes: dict[int, str] = {}
    threads: dict[Track, str] = {}
    for event in events:
        if event["name"] == "process_name":
            assert event["pid"] not in processes, "a process has two names"
            processes[event["pid"]] = event["args"]["name"]
        elif event["name"] == "thread_name":
            assert (event["pid"], event["tid"]) not in threads, "a thread has two names"
            threads[event["pid"], event["tid"]] = event["args"]["name"]
        elif event["ph"] == "M":
            assert event["name"] in ("process_sort_index", "thread_sort_index")
            assert isinstance(event["args"]["sort_index"], int)
    return processes, threads


def _ns(microseconds: float) -> int:
    nanoseconds = round(microseconds * 1e3)
    assert abs(nanoseconds - microseconds * 1e3) < 1e-2, "a time between two nanoseconds"
    return nanoseconds


def _slices(timed: list[Event]) -> dict[Track, list[Span]]:
    """Slices of a track must lie in each other or apart."""
    tracks: dict[Track, list[Span]] = defaultdict(list)
    open_spans: dict[Track, list[Span]] = defaultdict(list)
    for event in timed:
        if event["ph"] != "X":
            continue
        track, start = (event["pid"], event["tid"]), _ns(event["ts"])
        span = Span(event["name"], start, start + _ns(event["dur"]), event.get("args", {}))
        stack = open_spans[track]
        while stack and stack[-1].end <= start:
            stack.pop()
        if stack:
            assert span.end <= stack[-1].end, f"{span} overlaps {stack[-1]}"
        (stack[-1].inner if stack else tracks[track]).append(span)
        stack.append(span)
    return tracks


def _requests(timed: list[Event]) -> dict[int, Span]:
    """What begins ends, the innermost first, and each id is used by one event that lies in no other."""
    found: dict[int, Span] = {}
    open_spans: dict[int, list[Span]] = defaultdict(list)
    for event in timed:
        if event["ph"] not in "be":
            continue
        number, at, stack = event["id"], _ns(event["ts"]), open_spans[event["id"]]
        if event["ph"] == "b":
            span = Span(event["name"], at, -1, event.get("args", {}))
            if stack:
                stack[-1].inner.append(span)
            else:
                assert number not in found, f"request {number} is there twice"
                found[number] = span
            stack.append(span)
        else:
            span = stack.pop()
            assert span.name == event["name"]
            span.end = at
    assert not any(open_spans.values()), "an event begins and does not end"
    return found


def _counters(timed: list[Event]) -> dict[tuple[int, str], list[tuple[int, dict[str, int]]]]:
    counters: dict[tuple[int, str], list[tuple[int, dict[str, int]]]] = defaultdict(list)
    for event in timed:
        if event["ph"] == "C":
            counters[event["pid"], event["name"]].append((_ns(event["ts"]), event["args"]))
    return counters


def _flows(timed: list[Event], slices: dict[Track, list[Span]]) -> dict[int, list[Track]]:
    """A flow starts once and finishes once, and each of its points lies in a slice."""
    phases: dict[int, str] = defaultdict(str)
    tracks: dict[int, list[Track]] = defaultdict(list)
    for event in timed:
        if event["ph"] in "stf":
            track, at = (event["pid"], event["tid"]), _ns(event["ts"])
            assert any(span.start <= at < span.end for span in slices[track]), "an arrow that touches no slice"
            assert event.get("bp") == ("e" if event["ph"] == "f" else None)
            phases[event["id"]] += event["ph"]
            tracks[event["id"]].append(track)
    for number, order in phases.items():
        assert order == f"s{'t' * (len(order) - 2)}f", f"flow {number} goes {order}"
    return tracks


def launches(trace: Trace) -> Iterator[Span]:
    """The launches of all executors, each with its phases checked."""
    for spans in trace.slices.values():
        for launch in spans:
            phases = [phase.name for phase in launch.inner]
            assert phases == [name for name in ("fill", "run", "read") if name in phases]
            assert not any(phase.inner for phase in launch.inner)
            if launch.inner:
                assert (launch.inner[0].start, launch.inner[-1].end) == (launch.start, launch.end)
            yield launch
