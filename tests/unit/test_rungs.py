"""What becomes of trials follows from their scores and the order in which they were planned, and not from who was first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from glyphrun.sweeps.policies import Asha, HyperBand, Median
from glyphrun.sweeps.rungs import Brackets, Halving, Medians, Referee, Rule, Verdict

STEPS, EVERY = 80, 5
ASHA = Asha(grace_steps=10, reduction=2)
HYPERBAND = HyperBand(kind="hyperband", grace_steps=10, reduction=2)
RULES: dict[str, Callable[[int], Rule]] = {
    "asha": lambda count: Halving(ASHA),
    "median": lambda count: Medians(Median(kind="median", grace_steps=20, trials=2)),
    "hyperband": lambda count: Brackets(HYPERBAND, STEPS, [count]),
}


def sweep(rule: Rule, scores: np.ndarray, slots: int, rng: np.random.Generator) -> list[int]:
    """The steps at which trials end where any of those that run may report next. scores: (trials, reports)."""
    referee, reports = Referee(rule), [0] * len(scores)
    pending, running, paused, ended = list(range(len(scores))), [], [], {}
    while len(ended) < len(scores):
        said = {number: referee.verdict(number, reports[number] * EVERY) for number in sorted(paused)}
        stopped = [number for number in said if said[number] is Verdict.STOPS]
        for number in stopped:
            paused.remove(number)
            ended[number] = reports[number] * EVERY
            referee.ended(number)
        if stopped:
            continue
        ready = [number for number in said if said[number] is Verdict.GOES_ON] + pending
        while ready and len(running) < slots:
            number = ready.pop(0)
            running.append(number)
            (paused if number in paused else pending).remove(number)
        assert running, "everybody waits"
        number = int(rng.choice(running))
        reports[number] += 1
        step = reports[number] * EVERY
        referee.reported(number, step, float(scores[number, reports[number] - 1]))
        if step == STEPS:
            referee.ended(number)
        judged = Verdict.STOPS if step == STEPS else referee.verdict(number, step)
        if judged is not Verdict.GOES_ON:
            running.remove(number)
        if judged is Verdict.WAITS:
            paused.append(number)
        if judged is Verdict.STOPS:
            ended[number] = step
            referee.ended(number)
    return [ended[number] for number in range(len(scores))]


@pytest.mark.parametrize("kind", RULES)
def test_trials_end_at_the_same_steps_whichever_process_is_quicker_and_on_any_number_of_slots(kind):
    rng = np.random.default_rng(5)
    for _ in range(20):
        scores = rng.random((13, 1)) + rng.normal(scale=0.2, size=(13, STEPS // EVERY))
        alone = sweep(RULES[kind](13), scores, 1, rng)
        assert min(alone) < STEPS == max(alone)
        for slots in (2, 3, 8):
            assert sweep(RULES[kind](13), scores, slots, rng) == alone


def test_asha_lets_the_better_half_of_those_planned_before_go_on():
    referee = Referee(Halving(ASHA))
    for number, score in enumerate([0.5, 0.4, 0.6, 0.45, 0.55]):
        referee.reported(number, 10, score)
    said = [referee.verdict(number, 10) for number in range(5)]
    go, stop = Verdict.GOES_ON, Verdict.STOPS
    assert said == [go, stop, go, stop, go]  # medians of those before: none, .5, .45, .5, .475


def test_a_trial_waits_for_those_planned_before_it_until_they_have_come_so_far_or_ended():
    referee = Referee(Halving(ASHA))
    referee.reported(2, 10, 0.5)
    assert referee.verdict(2, 10) is Verdict.WAITS
    referee.reported(0, 5, 0.9)
    referee.ended(1)
    assert referee.verdict(2, 10) is Verdict.WAITS
    referee.reported(0, 10, 0.6)
    assert referee.verdict(2, 10) is Verdict.STOPS


def test_reports_that_come_again_are_judged_as_the_first_time():
    """A trial that was let go on at step 10 and is stopped at 20 is not stopped earlier when it is started again."""
    referee = Referee(Halving(ASHA))
    for step, first, second in ((10, 0.1, 0.2), (20, 0.8, 0.3)):
        referee.reported(0, step, first)
        referee.reported(1, step, second)
    assert [referee.verdict(1, 10), referee.verdict(1, 20)] == [Verdict.GOES_ON, Verdict.STOPS]
    referee.reported(1, 10, 0.0)
    assert referee.verdict(1, 10) is Verdict.GOES_ON


def test_the_median_rule_compares_the_best_with_the_others_means():
    referee = Referee(Medians(Median(kind="median", grace_steps=10, trials=2)))
    for number, (first, second) in enumerate([(0.2, 0.4), (0.4, 0.8), (0.5, 0.1), (0.29, 0.31)]):
        referee.reported(number, 5, first)
        referee.reported(number, 10, second)
    said = [referee.verdict(number, 10) for number in range(4)]
    # The third is judged by the means .3 and .6 and has .5, the fourth by .3, .6 and .3 and has .31; .29 does not do.
    assert said == [Verdict.GOES_ON] * 4
    referee.reported(4, 10, 0.29)
    assert referee.verdict(4, 10) is Verdict.STOPS


def test_hyperband_has_brackets_of_fewer_trials_with_fewer_rungs_and_halves_each_together():
    rule = Brackets(HYPERBAND, STEPS, [20, 4])
    assert rule.rungs == [10, 20, 40]
    assert [len(members) for members in rule.members] == [8, 6, 4, 2, 4]  # the last was added later
    assert [list(rule.judged_at(number)) for number in (0, 8, 14, 17, 18, 20)] == [
        [10, 20, 40], [20, 40], [40], [40], [], [10, 20, 40],
    ]  # fmt: skip
    referee = Referee(rule)
    for number in range(8):
        assert number == 0 or referee.verdict(0, 10) is Verdict.WAITS
        referee.reported(number, 10, 0.1 * (number % 5))
    said = [referee.verdict(number, 10) for number in range(8)]
    assert [number for number in range(8) if said[number] is Verdict.GOES_ON] == [2, 3, 4, 7]
