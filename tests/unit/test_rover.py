from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest

from glyphrun.decoding.rover import SILENCE, Shares, Voice, alignment, confusion_network, consensus, shares
from plain_edits import levenshtein


def voice(text: str, *weights: float, silence: float | None = None) -> Voice:
    even = weights or (1.0,) * len(text)
    return Voice(tuple(text), even, sum(even) / len(even) if silence is None else silence)


def cheapest(slots: tuple[tuple[tuple[str, float], ...], ...], characters: str) -> float:
    """The cost of the best of all alignments, by trying every one of them."""

    @cache
    def costs(rest: tuple[tuple[tuple[str, float], ...], ...], left: str) -> list[float]:
        if not rest:
            return [float(len(left))]
        slot = dict(rest[0])
        found = [cost + 1 - slot.get(SILENCE, 0.0) for cost in costs(rest[1:], left)]
        if left:
            found += [cost + 1 - slot.get(left[0], 0.0) for cost in costs(rest[1:], left[1:])]
            found += [cost + 1 for cost in costs(rest, left[1:])]
        return found

    return min(costs(slots, characters))


def cost_of(path: list[tuple[int | None, int | None]], slots: list[Shares], characters: str) -> float:
    total = 0.0
    for slot, place in path:
        said = SILENCE if place is None else characters[place]
        total += 1.0 if slot is None else 1 - slots[slot].get(said, 0.0)
    return total


def random_slots(rng: np.random.Generator) -> list[Shares]:
    slots = []
    for _ in range(rng.integers(0, 5)):
        said = rng.choice(["", "a", "b", "c"], rng.integers(1, 4), replace=False)
        slots.append(
            shares([(str(one), float(weight)) for one, weight in zip(said, rng.random(len(said)), strict=True)])
        )
    return slots


def test_no_alignment_is_cheaper():
    rng = np.random.default_rng(1)
    for _ in range(400):
        slots = random_slots(rng)
        characters = "".join(rng.choice(list("abc"), rng.integers(0, 5)))
        path = alignment(slots, characters)
        assert [slot for slot, _ in path if slot is not None] == list(range(len(slots)))
        assert [place for _, place in path if place is not None] == list(range(len(characters)))
        frozen = tuple(tuple(slot.items()) for slot in slots)
        assert cost_of(path, slots, characters) == pytest.approx(cheapest(frozen, characters))


def test_every_voice_reads_its_own_text_along_its_row():
    rng = np.random.default_rng(2)
    for _ in range(200):
        voices = [voice("".join(rng.choice(list("abc"), rng.integers(1, 6)))) for _ in range(rng.integers(1, 6))]
        rows = confusion_network(voices)
        assert len({len(row) for row in rows}) == 1
        for row, one in zip(rows, voices, strict=True):
            spoken = [cell for cell in row if cell[0] != SILENCE]
            assert spoken == one.cells
            assert all(weight == one.silence for said, weight in row if said == SILENCE)
        assert all(any(said != SILENCE for said, _ in column) for column in zip(*rows, strict=True))


def test_of_two_voices_the_network_is_the_least_edited_alignment():
    for length, other in product(range(4), repeat=2):
        for one in map("".join, product("ab", repeat=length)):
            for two in map("".join, product("ab", repeat=other)):
                rows = confusion_network([voice(one, silence=1.0), voice(two, silence=1.0)])
                unequal = sum(first[0] != second[0] for first, second in zip(*rows, strict=True))
                assert unequal == levenshtein(one, two)


def test_each_slot_says_what_weighs_most_in_it():
    rows = confusion_network(
        [voice("1743", 0.8, 0.4, 0.8, 0.8), voice("143", 0.9, 0.9, 0.9), voice("149", 0.3, 0.3, 0.9)]
    )
    assert ["".join(said or "-" for said, _ in row) for row in rows] == ["1743", "1-43", "1-49"]
    winners = consensus(rows)
    assert [said for said, _ in winners] == ["1", "", "4", "3"]
    assert [share for _, share in winners] == pytest.approx([1, 1.4 / 1.8, 1, 1.7 / 2.6])


def test_of_equals_a_character_wins_over_silence_and_the_smaller_over_the_larger():
    assert consensus([[("b", 0.5)], [("", 0.5)], [("a", 0.5)]]) == [("a", pytest.approx(1 / 3))]


def test_a_slot_without_any_weight_still_says_something():
    assert shares([("a", 0.0), ("b", 0.0)]) == {"a": 0.5, "b": 0.5}


def test_clusters_of_several_code_points_are_single_slots():
    whole = Voice(("କ୍ଷ", "ମା"), (0.6, 0.9), 0.7)
    other = Voice(("କ୍ତ", "ମା"), (0.7, 0.2), 0.4)
    winners = consensus(confusion_network([whole, other]))
    assert winners == [("କ୍ତ", pytest.approx(0.7 / 1.3)), ("ମା", pytest.approx(1.0))]
