"""Which trials go on, decided alike however they overtake each other.

Every decision about a trial at a step rests on stated other trials and on nothing that they reported after that step. It
waits until each of them has come so far or has ended. So the same experiment ends with the same leaderboard, whatever the
number of slots and whichever process was quicker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from statistics import fmean, median

import numpy as np

from glyphrun.sweeps.policies import Asha, HyperBand, Median


class Verdict(Enum):
    """What becomes of a trial that has reported."""

    GOES_ON = "goes on"
    STOPS = "stops"
    WAITS = "waits"  # for trials that its decision rests on


@dataclass
class Course:
    """A trial as far as it has come: its scores by step, ascending, of which larger is better.

    passed: the last step at which it was let go on; ended: nothing more comes of it.
    """

    steps: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    passed: int = 0
    ended: bool = False

    def comes_to(self, step: int) -> bool:
        """Whether it has reported from a step on."""
        return bool(self.steps) and self.steps[-1] >= step

    def at(self, step: int) -> float:
        """The first score from a step on."""
        return self.scores[bisect_left(self.steps, step)]

    def until(self, step: int) -> list[float]:
        """The scores up to the first from a step on."""
        return self.scores[: bisect_left(self.steps, step) + 1]


class Rule(ABC):
    """At which steps trials are judged, by which others, and how; trials are meant by their numbers."""

    @abstractmethod
    def judged_at(self, number: int) -> Iterator[int]:
        """The steps at which a trial is judged, ascending."""

    @abstractmethod
    def others(self, number: int) -> Sequence[int]:
        """The trials on whose scores a judgement rests."""

    @abstractmethod
    def keeps(self, number: int, step: int, course: Course, others: Mapping[int, Course]) -> bool:
        """Whether a trial goes on; others: those of its others that have come so far."""


class Halving(Rule):
    """Asynchronous successive halving (arXiv 1810.05934) over the order in which trials were planned.

    A trial is compared with those before it alone, so that none waits for one that has not begun.
    """

    def __init__(self, declared: Asha) -> None:
        self.declared = declared

    def judged_at(self, number: int) -> Iterator[int]:
        return _rungs(self.declared.grace_steps, self.declared.reduction)

    def others(self, number: int) -> Sequence[int]:
        return range(number)

    def keeps(self, number: int, step: int, course: Course, others: Mapping[int, Course]) -> bool:
        before = [other.at(step) for other in others.values()]
        return not before or course.at(step) >= float(np.quantile(before, 1 - 1 / self.declared.reduction))


class Medians(Rule):
    """The median stopping rule of Vizier (KDD 2017), at every multiple of its grace, against the trials planned before."""

    def __init__(self, declared: Median) -> None:
        self.declared = declared

    def judged_at(self, number: int) -> Iterator[int]:
        step = 0
        while True:
            step += self.declared.grace_steps
            yield step

    def others(self, number: int) -> Sequence[int]:
        return range(number)

    def keeps(self, number: int, step: int, course: Course, others: Mapping[int, Course]) -> bool:
        means = [fmean(other.until(step)) for other in others.values()]
        return len(means) < self.declared.trials or max(course.until(step)) >= median(means)


class Brackets(Rule):
    """HyperBand (arXiv 1603.06560): brackets of trials that wait for each other at their rungs.

    The first bracket has the most trials and all rungs, each next one fewer trials and one rung less, the last has none;
    then it begins anew. steps: of the longest training; batches: how many trials were planned together each time.
    """

    def __init__(self, declared: HyperBand, steps: int, batches: Sequence[int]) -> None:
        self.declared = declared
        self.rungs = []
        for rung in _rungs(declared.grace_steps, declared.reduction):
            if rung >= steps:
                break
            self.rungs.append(rung)
        self.members: list[range] = []  # of brackets, in the order of their trials
        self.firsts: list[int] = []  # each one's first rung
        for batch in batches:
            self._fill(self.members[-1].stop if self.members else 0, batch)

    def judged_at(self, number: int) -> Iterator[int]:
        return iter(self.rungs[self.firsts[self._bracket(number)] :])

    def others(self, number: int) -> Sequence[int]:
        return [one for one in self.members[self._bracket(number)] if one != number]

    def keeps(self, number: int, step: int, course: Course, others: Mapping[int, Course]) -> bool:
        there = {number: course, **others}
        ranked = sorted(there, key=lambda one: (-there[one].at(step), one))
        return number in ranked[: max(len(ranked) // self.declared.reduction, 1)]

    def _fill(self, start: int, batch: int) -> None:
        end, rungs = start + batch, len(self.rungs)
        while start < end:
            for first in range(rungs + 1):
                size = ceil((rungs + 1) / (rungs + 1 - first) * self.declared.reduction ** (rungs - first))
                if start < end:
                    self.members.append(range(start, min(start + size, end)))
                    self.firsts.append(first)
                start += size

    def _bracket(self, number: int) -> int:
        return next(place for place, members in enumerate(self.members) if number in members)


class Referee:
    """Judges trials by a rule from what is known of all of them, by their numbers."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.courses: dict[int, Course] = {}

    def reported(self, number: int, step: int, score: float) -> None:
        """A report, of which larger scores are better; one that comes again changes nothing."""
        course = self.courses.setdefault(number, Course())
        if not course.steps or step > course.steps[-1]:
            course.steps.append(step)
            course.scores.append(score)

    def ended(self, number: int) -> None:
        """Nobody waits for a trial any more."""
        self.courses.setdefault(number, Course()).ended = True

    def verdict(self, number: int, last: int) -> Verdict:
        """What becomes of a trial after its report of a step; one that has ended tells its reports again to the last."""
        course = self.courses[number]
        if course.ended:
            return Verdict.GOES_ON
        for step in self.rule.judged_at(number):
            if step > last:
                break
            if step <= course.passed:
                continue
            others = {one: self.courses.get(one, Course()) for one in self.rule.others(number)}
            if not all(other.ended or other.comes_to(step) for other in others.values()):
                return Verdict.WAITS
            there = {one: other for one, other in others.items() if other.comes_to(step)}
            if not self.rule.keeps(number, step, course, there):
                return Verdict.STOPS
            course.passed = step
        return Verdict.GOES_ON


def _rungs(grace: int, reduction: int) -> Iterator[int]:
    while True:
        yield grace
        grace *= reduction
