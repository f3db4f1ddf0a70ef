"""ROVER: readings aligned character by character into a confusion network, and a vote in each of its slots.

J. G. Fiscus, «A post-processing system to yield reduced word error rates: Recognizer Output Voting Error Reduction»,
ASRU 1997, with characters (grapheme clusters, or whatever the caller takes for one) in the place of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SILENCE = ""  # what a reading says in a slot where others have a character and it has none

Cell = tuple[str, float]  # what a voice says in a slot, and how much that weighs
Shares = dict[str, float]


@dataclass(frozen=True)
class Voice:
    """One reading: its characters, how much each of them weighs, and how much it weighs where it has none."""

    characters: tuple[str, ...]
    weights: tuple[float, ...]
    silence: float

    @property
    def cells(self) -> list[Cell]:
        """The reading alone."""
        return list(zip(self.characters, self.weights, strict=True))


def confusion_network(voices: Sequence[Voice]) -> list[list[Cell]]:
    """A row of cells for each voice, all rows of one length: a column is a slot.

    Voices are aligned one after another with the network of those before them, so the surest should come first. The cost
    of a slot is the share of its weight that says something else, and that of a new slot is 1.
    """
    rows: list[list[Cell]] = []
    for voice in voices:
        placed: list[list[Cell]] = [[] for _ in rows]
        added: list[Cell] = []
        for slot, place in alignment([shares(column) for column in zip(*rows, strict=True)], voice.characters):
            for number, row in enumerate(placed):
                row.append((SILENCE, voices[number].silence) if slot is None else rows[number][slot])
            added.append((SILENCE, voice.silence) if place is None else voice.cells[place])
        rows = [*placed, added]
    return rows


def consensus(rows: Sequence[Sequence[Cell]]) -> list[tuple[str, float]]:
    """What each slot says and its share of the slot's weight; of equals a character, and the first in order."""
    winners = []
    for column in zip(*rows, strict=True):
        of = shares(column)
        winner = min(of, key=lambda said: (-of[said], said == SILENCE, said))
        winners.append((winner, of[winner]))
    return winners


def shares(column: Sequence[Cell]) -> Shares:
    """What is said in a slot, with the share of the slot's weight that says it."""
    weights: Shares = {}
    for said, weight in column:
        weights[said] = weights.get(said, 0.0) + weight
    total = sum(weights.values())
    return {said: weight / total if total else 1 / len(weights) for said, weight in weights.items()}


def alignment(slots: Sequence[Shares], characters: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """The cheapest way through slots and characters, in order: (slot, None) is silence, (None, place) a new slot."""
    ahead, aside, new = "ahead", "aside", "new"
    costs = [[float(place) for place in range(len(characters) + 1)]]
    steps = [[new] * (len(characters) + 1)]
    for slot in slots:
        before, skipping = costs[-1], 1 - slot.get(SILENCE, 0.0)
        row, ways = [before[0] + skipping], [aside]
        for place, character in enumerate(characters):
            choices = (
                (before[place] + 1 - slot.get(character, 0.0), ahead),
                (before[place + 1] + skipping, aside),
                (row[place] + 1, new),
            )
            cost, way = min(choices, key=lambda choice: choice[0])
            row.append(cost)
            ways.append(way)
        costs.append(row)
        steps.append(ways)
    number, place = len(slots), len(characters)
    path: list[tuple[int | None, int | None]] = []
    while number or place:
        way = steps[number][place]
        number, place = number - (way != new), place - (way != aside)
        path.append((None if way == new else number, None if way == aside else place))
    return path[::-1]
