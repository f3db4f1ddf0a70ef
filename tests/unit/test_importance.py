"""What settings explain of the scores is told from what chance would seem to explain."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from glyphrun.evaluation.importance import importance


def trial(exact: float, *, family: str = "a", step: int = 300, **changes: Any) -> dict[str, Any]:
    curve = [{"step": at, "exact": exact * at / step} for at in range(100, step + 1, 100)]
    return {"family": family, "changes": changes, "curve": curve}


def trials(n: int, seed: int, effect: float = 1.0) -> list[dict[str, Any]]:
    """Scores that fall off around a learning rate of 0.001 and are better for family b; rank is searched of b alone."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(n):
        rate, family = float(10 ** rng.uniform(-4, -2)), "ab"[number % 2]
        rank = {"rank": int(rng.choice([4, 8]))} if family == "b" else {}
        exact = 0.9 + effect * (0.05 * (family == "b") - 0.1 * (np.log10(rate) + 3) ** 2) + 0.01 * rng.normal()
        made.append(trial(exact, family=family, rate=rate, width=int(rng.choice([64, 96, 128])), **rank))
    return made


def test_of_24_configurations_the_two_settings_that_matter_are_told_from_those_that_do_not() -> None:
    for seed in range(5):
        found = importance(trials(24, seed))
        assert found.configurations == found.reached == 24
        shares = {share.setting: share for share in found.shares}
        assert {name for name, share in shares.items() if share.share > share.chance} == {"rate", "family"}
        assert 0.0005 < shares["rate"].best < 0.002
        assert shares["family"].best == "b"
        assert shares["width"].best is None
        assert shares["rank"].searched == 12
        assert 0.6 < sum(share.share for share in found.shares) < 1.2


def test_settings_that_do_nothing_pass_in_at_most_one_sweep_of_ten() -> None:
    passed = [any(share.best is not None for share in importance(trials(16, seed, 0.0)).shares) for seed in range(40)]
    assert sum(passed) <= 4


def test_trials_are_compared_at_a_step_that_three_in_four_have_reached() -> None:
    made = [trial(0.5 + number / 100, rate=number, step=900 if number < 4 else 300) for number in range(12)]
    made[11]["curve"] = made[11]["curve"][:1]
    found = importance(made)
    assert (found.step, found.reached, found.scored) == (300, 11, 12)


def test_repeats_with_other_seeds_are_one_configuration() -> None:
    made = [trial(0.5 + number / 100, rate=number // 2) for number in range(16)]
    assert importance(made).configurations == 8
    assert importance(made[:14]).reason == "7 configurations are too few: at least 8 are needed"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ([], "no trial has a score"),
        ([trial(0.5) for _ in range(9)], "1 configurations are too few"),
        ([trial(0.5, rate=number) for number in range(9)], "all configurations have the same score"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(made: list[dict[str, Any]], reason: str) -> None:
    found = importance(made)
    assert found.shares == () and found.reason and found.reason.startswith(reason)


def test_values_that_are_no_numbers_are_choices_and_results_are_json() -> None:
    stems = ["patch", "convolution"] * 6
    made = [
        trial(0.5 + 0.4 * (stem == "convolution"), stem=stem, size=[32, 32 * (1 + number % 3)], frozen=number < 5)
        for number, stem in enumerate(stems)
    ]
    found = importance(made)
    assert (found.shares[0].setting, found.shares[0].best) == ("stem", "convolution")
    assert json.loads(json.dumps(found.to_json()))["shares"][0]["best"] == "convolution"
