"""What became of the items that two releases read at the same time: counts that can be added up over processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil, log

from glyphrun.prediction import Prediction

# Each bucket of latencies reaches so much further than the one below, so a percentile is right to 5 %.
STEP = 1.05


@dataclass
class Tally:
    """What became of the items of one release.

    failed: those that the server could not answer, not those that the client spoilt. latencies: answers by bucket.
    confidence: summed over answers. reason: why the last one failed.
    """

    answered: int = 0
    failed: int = 0
    abstained: int = 0
    confidence: float = 0.0
    latencies: Counter[int] = field(default_factory=Counter)
    reason: str = ""

    @property
    def items(self) -> int:
        return self.answered + self.failed

    @property
    def mean_confidence(self) -> float | None:
        return self.confidence / self.answered if self.answered else None

    def read(self, found: Prediction, ms: float) -> None:
        self.answered += 1
        self.abstained += found.abstained
        self.confidence += found.confidence
        self.latencies[_bucket(ms)] += 1

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.reason = reason

    def add(self, other: Tally) -> None:
        self.answered += other.answered
        self.failed += other.failed
        self.abstained += other.abstained
        self.confidence += other.confidence
        self.latencies.update(other.latencies)
        self.reason = other.reason or self.reason

    def percentile(self, percent: float) -> float | None:
        """The latency in ms that so many answers stay within, None without answers."""
        left = self.answered * percent / 100
        for bucket in sorted(self.latencies):
            left -= self.latencies[bucket]
            if left <= 1e-9:
                return STEP**bucket
        return None

    def slower_than(self, ms: float) -> int:
        """Answers that took longer than the bucket in which so many milliseconds lie."""
        within = _bucket(ms)
        return sum(count for bucket, count in self.latencies.items() if bucket > within)


@dataclass
class Comparison:
    """The champion and its challenger. agreed, differed, skipped: items of a shadow, of which both were to read each."""

    champion: Tally = field(default_factory=Tally)
    challenger: Tally = field(default_factory=Tally)
    agreed: int = 0
    differed: int = 0
    skipped: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of items that both read alike."""
        both = self.agreed + self.differed
        return self.agreed / both if both else None

    def add(self, other: Comparison) -> None:
        self.champion.add(other.champion)
        self.challenger.add(other.challenger)
        self.agreed += other.agreed
        self.differed += other.differed
        self.skipped += other.skipped


def _bucket(ms: float) -> int:
    return max(0, ceil(log(max(ms, 1e-3)) / log(STEP) - 1e-9))
