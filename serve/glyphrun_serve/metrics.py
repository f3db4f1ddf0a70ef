"""What a Prometheus server can ask this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from glyphrun.prediction import Prediction

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TENTHS = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """Counters and histograms of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = of = CollectorRegistry()
        answered = ("route", "method", "status")
        self._requests = Counter("glyphrun_requests", "Requests answered.", answered, registry=of)
        self._seconds = Histogram(
            "glyphrun_request_seconds", "From request to end of answer.", ("route",), buckets=SECONDS, registry=of
        )
        self._in_flight = Gauge("glyphrun_requests_in_flight", "Requests that wait for their answer.", registry=of)
        self._waiting = Gauge("glyphrun_items_in_flight", "Items that are queued or read.", registry=of)
        self._stages = Histogram(
            "glyphrun_stage_seconds",
            "Stages of a reading: wait is the queue, the others are of the batch.",
            ("stage",),
            buckets=SECONDS,
            registry=of,
        )
        self._batch = Histogram("glyphrun_batch_items", "Items read together.", buckets=BATCHES, registry=of)
        self._confidence = Histogram("glyphrun_confidence", "Confidence of readings.", buckets=TENTHS, registry=of)
        self._abstentions = Counter("glyphrun_abstentions", "Readings under the threshold.", registry=of)
        self._members = Counter(
            "glyphrun_member_answers",
            "Members of an ensemble by what became of them.",
            ("member", "status"),
            registry=of,
        )

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        with self._in_flight.track_inprogress():
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._waiting.track_inprogress():
            yield

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def read(self, prediction: Prediction) -> None:
        self._batch.observe(prediction.batch)
        self._confidence.observe(prediction.confidence)
        self._abstentions.inc(prediction.abstained)
        for stage, spent in prediction.timings.items():
            self._stages.labels(stage).observe(spent / 1e3)
        for member in prediction.members:
            # A failure's reason follows its status, and would make a series of its own.
            self._members.labels(member.member, member.status.split()[0].rstrip(":")).inc()

    def watch_samples(self, outcomes: Mapping[str, int]) -> None:
        """Show what becomes of the requests that are worth a label; outcomes: counts that go on changing."""
        name, help = "glyphrun_samples", "Requests worth a label by what became of them."
        self._registry.register(
            _Counted(name, help, ("outcome",), lambda: [((key,), n) for key, n in outcomes.items()])
        )

    def watch_releases(self, outcomes: Mapping[tuple[str, str, str], int]) -> None:
        """Show what becomes of items by role, version and outcome; outcomes: counts that go on changing."""
        name, help = "glyphrun_release_items", "Items read by the champion and by its challenger, by outcome."
        self._registry.register(_Counted(name, help, ("role", "version", "outcome"), outcomes.items))

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class _Counted(Collector):
    """Counts that are kept elsewhere, where they go on changing."""

    def __init__(
        self, name: str, help: str, labels: Sequence[str], counts: Callable[[], Iterable[tuple[tuple[str, ...], int]]]
    ) -> None:
        self._name, self._help, self._labels, self._counts = name, help, labels, counts

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, count in list(self._counts()):
            family.add_metric(values, count)
        yield family
