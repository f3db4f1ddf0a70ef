"""Examples in a report show how a recognizer errs, however seldom it does."""

from __future__ import annotations

import numpy as np
import pytest

from glyphrun.sweeps.examples import Judged, draw_examples


def judged(wrong: int, right: int, prefix: str) -> Judged:
    verdicts = np.array([False] * wrong + [True] * right)
    return Judged([f"{prefix}-{number}" for number in range(wrong + right)], verdicts)


def drawn(wrong: tuple[int, int], right: tuple[int, int], seed: int = 0) -> tuple[int, int, dict[str, list[str]]]:
    splits = {name: judged(wrong[place], right[place], name) for place, name in enumerate(("test", "unseen"))}
    found = draw_examples(splits, np.random.default_rng(seed))
    verdicts = [splits[name].right[int(sample.split("-")[1])] for name, samples in found.items() for sample in samples]
    return verdicts.count(False), verdicts.count(True), found


@pytest.mark.parametrize(
    ("wrong", "right", "shown"),
    [
        ((36, 60), (764, 440), (12, 12)),
        ((2, 1), (798, 499), (3, 21)),
        ((0, 0), (800, 500), (0, 24)),
        ((400, 300), (2, 3), (19, 5)),
        ((3, 0), (4, 0), (3, 4)),
    ],
)
def test_half_of_the_examples_are_wrong_readings_where_there_are_so_many(
    wrong: tuple[int, int], right: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert drawn(wrong, right)[:2] == shown


def test_splits_take_turns_and_another_seed_draws_others() -> None:
    found = drawn((50, 50), (50, 50))[2]
    assert {name: len(samples) for name, samples in found.items()} == {"test": 12, "unseen": 12}
    assert drawn((50, 50), (50, 50))[2] == found != drawn((50, 50), (50, 50), seed=1)[2]
