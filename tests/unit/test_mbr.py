from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from glyphrun.decoding.mbr import expected_edits
from glyphrun.graphemes import graphemes
from plain_edits import levenshtein


def test_expected_edits_are_the_mean_edits_to_every_reading_of_the_pool():
    rng = np.random.default_rng(3)
    everything = ["".join(text) for length in range(4) for text in product("ab", repeat=length)]
    for _ in range(200):
        pool = rng.choice(everything, rng.integers(1, 7), replace=False).tolist()
        masses = {text: float(mass) for text, mass in zip(pool, 5 * rng.random(len(pool)), strict=True)}
        found = expected_edits(masses)
        for text in pool:
            by_hand = sum(mass * levenshtein(tuple(text), tuple(other)) for other, mass in masses.items())
            assert found[text] == pytest.approx(by_hand / sum(masses.values()))


def test_what_lies_between_all_others_is_read_although_it_is_nowhere_most_probable():
    found = expected_edits({"12": 0.35, "34": 0.35, "14": 0.3})
    assert found == pytest.approx({"12": 0.35 * 2 + 0.3, "34": 0.35 * 2 + 0.3, "14": 0.7})
    assert min(found, key=lambda text: found[text]) == "14"


def test_a_reading_with_more_than_half_of_the_mass_has_the_least_risk():
    rng = np.random.default_rng(4)
    for _ in range(200):
        others = {"".join(rng.choice(list("abc"), rng.integers(0, 6))): float(mass) for mass in rng.random(5)}
        masses = {**others, "cab": sum(others.values()) + 0.01}
        found = expected_edits(masses)
        assert min(found, key=lambda text: found[text]) == "cab"


def test_a_conjunct_is_one_edit_however_many_code_points_it_has():
    assert expected_edits({"କ୍ଷ": 1.0, "ମ": 1.0}, graphemes) == pytest.approx({"କ୍ଷ": 0.5, "ମ": 0.5})
    assert expected_edits({"କ୍ଷ": 1.0, "ମ": 1.0})["ମ"] == pytest.approx(1.5)
