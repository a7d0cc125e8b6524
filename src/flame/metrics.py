"""Every metric FLAME exports, in one place, so that code, dashboards and documents use one word for one thing.

`Metrics` has its own registry: two servers in one process (tests, say) do not share counters. Durations are seconds,
as Prometheus wants them.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The metric families of one server; each is safe to update from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered: ok or the error kind", "protocol", "outcome")
        self.pairs = self._counter("pairs", "User-item pairs scored")
        self.stage = self._histogram("stage_seconds", "Time of one request in one stage", _LATENCY, "stage")
        self.request = self._histogram("request_seconds", "Time of one request in the ranker", _LATENCY)
        self.candidates = self._histogram("request_candidates", "Candidates of one request", _COUNTS)
        self.in_flight = self._gauge("in_flight", "Requests admitted and not yet answered")
        self.refused = self._counter(
            "refused",
            "Requests refused, at admission or in the queue, by kind of error and priority",
            "stage",
            "reason",
            "priority",
        )
        self.truncated = self._counter("truncated", "Requests of which only the first candidates were scored")
        self.queued = self._gauge("queued_launches", "Launches planned and waiting for an executor")
        self.launches = self._counter("launches", "Launches run", "profile", "kind")
        failures = "Launches that failed: error, refused or hang"
        self.launches_failed = self._counter("launches_failed", failures, "device", "reason")
        self.busy = self._counter("busy_seconds", "Time in launches, summed over the executors of a device", "device")
        self.executors = self._gauge("executors", "Executors by state: running, rebuilding or out", "device", "state")
        self.rebuilds = self._counter("executor_rebuilds", "Rebuilds of executors: ok or failed", "device", "outcome")
        self.padding = self._counter("padding_pairs", "Candidate slots of launches that held no candidate")
        self.state_hits = self._counter("state_hits", "Requests whose history was encoded, or about to be, for another")
        self.state_misses = self._counter("state_misses", "Requests whose history was not")
        self.state_appends = self._counter("state_appends", "Histories of which only the appended part was encoded")
        self.state_evictions = self._counter("state_evictions", "Encoded histories that made room for another")
        self.states_held = self._gauge("states_held", "Encoded histories that a request would find")
        self.state_bytes = self._gauge("state_bytes", "Memory of the encoded histories that a request would find")
        self.features = self._counter("features", "Item rows by state: fresh, stale, missing or unknown", "state")
        self.store = self._histogram("store_seconds", "Time of one fetch from the feature store", _LATENCY)
        self.store_errors = self._counter("store_errors", "Fetches from the feature store that failed")
        self.refresh_dropped = self._counter("refresh_dropped", "Item rows not refreshed: the queue was full")

    def render(self) -> bytes:
        """All families in the Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="flame", registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace="flame", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace="flame", registry=self.registry, buckets=buckets)
