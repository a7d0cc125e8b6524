"""The writer of traces, on recordings that no orchestrator would make."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from flame.orchestrator.chrome_trace import encode
from flame.orchestrator.profiles import Kind
from flame.orchestrator.timeline import LaunchSpan, QueueLength, Recording, RequestSpan
from tests.chrome_traces import Trace, launches, read

KINDS: tuple[Kind, ...] = ("rank", "encode", "score")
TRACKS = [("cpu", 0), ("cpu", 1), ("cuda:0", 0), ("cuda:0", 1), ('a "b"\\', 7)]
LENGTHS = st.sampled_from([0.0, 1e-9, 1e-6, 3e-4, 1 / 3, 1e3]) | st.floats(0, 10)
TEXT = st.text(max_size=3)
LAUNCHES = st.tuples(
    st.sampled_from(TRACKS),
    st.sampled_from(["1x8+8", "4x512+128"]),
    st.sampled_from(KINDS),
    st.integers(0, 64),
    st.tuples(LENGTHS, LENGTHS, LENGTHS, LENGTHS),
    TEXT,
    st.sets(st.integers(0, 8), min_size=1, max_size=4),
)
REQUESTS = st.tuples(
    TEXT,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.tuples(LENGTHS, st.none() | LENGTHS, LENGTHS),
    st.sampled_from(["ok", "cancelled"]),
)
QUEUE = st.tuples(LENGTHS, st.integers(0, 99), st.integers(0, 99))


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Launches that follow each other on each executor, and requests and queues that have nothing to do with them."""
    start = draw(st.sampled_from([0.0, 1 / 3, 1e7]))
    ends = dict.fromkeys(TRACKS, start)
    launches = []
    for (device, executor), profile, kind, padding, (gap, *lengths), error, members in draw(st.lists(LAUNCHES)):
        times = list(accumulate([max(lengths[0], 1e-6), *lengths[1:]], initial=ends[device, executor] + gap))
        ends[device, executor] = times[-1]
        about = (executor, device, profile, kind, len(members), 64 - padding, 64)
        launches.append(LaunchSpan(*about, *times, error, tuple(members)))
    requests = []
    for number, (name, user, (submitted, waited, ran), outcome) in enumerate(draw(st.lists(REQUESTS))):
        begun = None if waited is None else start + submitted + waited
        ended = (start + submitted if begun is None else begun) + ran
        about = (number, name, user, 5, 8, start + submitted, begun, ended)
        requests.append(RequestSpan(*about, 1, False, outcome))
    queue = [QueueLength(start + at, waiting, planned) for at, waiting, planned in draw(st.lists(QUEUE))]
    return Recording(tuple(sorted(launches, key=lambda launch: launch.ended)), tuple(requests), tuple(sorted(queue)))


def trace_of(recording: Recording) -> Trace:
    return read(b"".join(encode(recording)))


@given(recordings())
def test_every_trace_keeps_the_rules_of_the_format(recording: Recording) -> None:
    trace = trace_of(recording)
    counters = {name: marks for (_, name), marks in trace.counters.items()}
    assert len(counters.get("queue", ())) == len(recording.queue)
    check_launches(trace, recording)
    check_requests(trace, recording)


def first(recording: Recording) -> float:
    times = [launch.filled for launch in recording.launches]
    times += [request.submitted for request in recording.requests]
    return min(times + [mark.at for mark in recording.queue], default=0.0)


def check_launches(trace: Trace, recording: Recording) -> None:
    drawn = list(launches(trace))
    assert len(drawn) == len(recording.launches)
    assert sorted(span.name for span in drawn) == sorted(f"{one.kind} {one.profile}" for one in recording.launches)
    assert sorted(span.args["padding"] for span in drawn) == sorted(
        one.slots - one.candidates for one in recording.launches
    )
    assert sum("error" in span.args for span in drawn) == sum(bool(one.error) for one in recording.launches)
    origin = first(recording)
    assert sorted((span.start, span.end) for span in drawn) == sorted(
        (round((one.filled - origin) * 1e9), round((one.ended - origin) * 1e9)) for one in recording.launches
    )
    devices = {trace.processes[process] for process, _ in trace.slices}
    assert devices == {launch.device for launch in recording.launches}
    assert len(trace.threads) == len({(launch.device, launch.executor) for launch in recording.launches})
    for process, name in trace.counters:
        if name == "busy executors":
            threads = [track for track in trace.threads if track[0] == process]
            busy = [counts["executors"] for _, counts in trace.counters[process, name]]
            assert busy[-1] == 0
            assert all(abs(one - other) == 1 for one, other in pairwise([0, *busy]))
            assert max(busy) <= len(threads), "more executors were busy than there are"


def check_requests(trace: Trace, recording: Recording) -> None:
    assert set(trace.requests) == {request.number for request in recording.requests}
    for request in recording.requests:
        span = trace.requests[request.number]
        assert (span.args["user"], span.args["request_id"]) == (request.user, request.request_id)
        assert [phase.name for phase in span.inner] == (["queue"] if request.started is None else ["queue", "compute"])
        edges = [span.start, *(edge for phase in span.inner for edge in (phase.start, phase.end)), span.end]
        assert edges[0] == edges[1]
        assert edges[-2] == edges[-1]
        assert all(one == other for one, other in zip(edges[2:-2:2], edges[3:-1:2], strict=False))
    for number in {number for launch in recording.launches for number in launch.members}:
        count = sum(number in launch.members for launch in recording.launches)
        assert len(trace.flows.get(number, ())) == (count if count > 1 else 0)


def test_an_empty_timeline_is_a_trace() -> None:
    trace = trace_of(Recording((), (), ()))
    assert trace.processes == {1: "requests"}
    assert not trace.slices
    assert not trace.requests


def test_times_are_microseconds_since_the_first() -> None:
    launch = LaunchSpan(0, "cpu", "1x8+8", "rank", 1, 5, 8, 1e6 + 0.25, 1e6 + 0.5, 1e6 + 0.75, 1e6 + 1.0, "", (3,))
    request = RequestSpan(3, "", None, 5, 8, 1e6, 1e6 + 0.125, 1e6 + 1.0, 1, False, "ok")
    trace = trace_of(Recording((launch,), (request,), ()))
    (span,) = launches(trace)
    quarter = 250_000_000
    assert [(phase.start, phase.end) for phase in span.inner] == [
        (quarter, 2 * quarter),
        (2 * quarter, 3 * quarter),
        (3 * quarter, 4 * quarter),
    ]
    assert (trace.requests[3].start, trace.requests[3].end) == (0, 4 * quarter)


def test_a_large_trace_comes_in_small_pieces() -> None:
    queue = tuple(QueueLength(float(at), 1, 1) for at in range(5000))
    pieces = list(encode(Recording((), (), queue)))
    assert max(map(len, pieces)) < 64 * 1024
    assert len(read(b"".join(pieces)).counters[1, "queue"]) == 5000
