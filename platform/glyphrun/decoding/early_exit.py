"""Early exit: the windows of an item are read in turn until the rest can no longer change the answer, or hardly will.

What is saved is the encoder: a frame is encoded when a window that has it is read, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import exp, fsum
from typing import Literal

from torch import Tensor

from glyphrun.decoding.rover import Voice
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Hypothesis, VoteRules, support_of, voices_of, vote
from glyphrun.decoding.windows import rows_and_mask, window_rows
from glyphrun.models.average import with_frames
from glyphrun.models.recognizer import Memory, Recognizer

NBest = Sequence[Hypothesis]
DOUBT = 0.5  # of a window, that says something else before any is read
ROUNDING = 1e-5  # probabilities come out of float32, so a window may give a trifle more than 1


def read_in_turn(
    recognizer: Recognizer,
    settings: DecodeSettings,
    rules: VoteRules,
    counts: Sequence[int],
    scores: Sequence[float],
    encode: Callable[[list[int]], Memory],
    hypotheses: Callable[[Memory], Sequence[NBest]],
) -> list[tuple[list[list[int]], list[NBest]]]:
    """For each item the windows that were read and their readings, both in the order of the windows.

    counts: how many frames each item has; scores: how legible each frame of all items looks; encode: the numbers of some
    of these frames → their memory, each an item of its own. A recognizer that reads frames alone reads them one by one.
    """
    size, together = settings.window_frames, recognizer.reads_frames_together
    items = [window_rows(count, settings.windows if size else count, size or 1) for count in counts]
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    features = FrameFeatures(encode)

    def read(windows: list[list[int]]) -> Sequence[NBest]:
        if together:
            return hypotheses(features.regrouped(recognizer.regroup, windows))
        return hypotheses(encode([frame for (frame,) in windows]))

    placed = [[[first + row for row in window] for window in item] for first, item in zip(firsts, items, strict=True)]
    found = read_in_rounds(placed, scores, read, partial(is_enough, settings.early_exit, rules))
    return [
        ([item[window] for window in readings], list(readings.values()))
        for item, readings in zip(items, found, strict=True)
    ]


def read_in_rounds(
    items: Sequence[Sequence[list[int]]],
    scores: Sequence[float],
    read: Callable[[list[list[int]]], Sequence[NBest]],
    enough: Callable[[Sequence[NBest], int], bool],
) -> list[dict[int, NBest]]:
    """The readings of each item's windows that were read, by their numbers, in the order of the windows.

    items: the windows of each, as frame numbers; scores: how legible each frame looks. A window looks as its frames do on
    average, the most legible is read first, and of equals the first. Each round reads one window of every item that goes
    on: ``read`` takes windows, ``enough`` an item's readings so far and how many windows it has left.
    """
    order = [_most_legible_first(item, scores) for item in items]
    found: list[dict[int, NBest]] = [{} for _ in items]
    going_on = [number for number, item in enumerate(items) if item]
    while going_on:
        wanted = [(number, order[number][len(found[number])]) for number in going_on]
        readings = read([items[number][window] for number, window in wanted])
        for (number, window), reading in zip(wanted, readings, strict=True):
            found[number][window] = reading
        left = {number: len(items[number]) - len(found[number]) for number in going_on}
        going_on = [
            number for number in going_on if left[number] and not enough([*found[number].values()], left[number])
        ]
    return [dict(sorted(readings.items())) for readings in found]


def _most_legible_first(windows: Sequence[list[int]], scores: Sequence[float]) -> list[int]:
    looks = [fsum(scores[frame] for frame in window) / len(window) for window in windows]
    return sorted(range(len(windows)), key=lambda window: -looks[window])


def is_enough(
    early_exit: Literal["decided"] | float | None, rules: VoteRules, read: Sequence[NBest], left: int
) -> bool:
    """Whether an item need not be read on, as the setting of that name says."""
    if early_exit is None:
        return not left
    if early_exit == "decided":
        return is_decided(read, rules, left)
    return posterior(read, rules) >= early_exit


def is_decided(read: Sequence[NBest], rules: VoteRules, left: int) -> bool:
    """Whether no ``left`` further voters can change the first reading; it holds for any voter whose weight is 1.

    A voter adds at most 1, times the largest prior of a length, to what readings weigh, and all of it may go to one.
    sum, majority, confidence: no other reading can catch up. mbr: a reading with more than half of all mass that there
    can be has the least risk, since a reading that is k edits off costs k for its mass and saves at most k elsewhere.
    rover: in each slot of any network the answer's character, or its silence, outweighs all others together. longest: a
    longer reading may always come.
    """
    if not left:
        return True
    most = left * (1 + ROUNDING)
    if rules.method == "rover":
        return _outvotes_in_every_slot(voices_of(read, rules), most * rules.largest_prior)
    support = support_of(read, rules)
    if rules.method == "longest" or not support:
        return False
    first = max(support, key=lambda text: support[text])
    if support[first] < rules.least:
        return False
    rivals = {text: weight for text, weight in support.items() if text != first}
    if rules.method == "mbr":
        return support[first] > fsum(rivals.values()) + most * rules.largest_prior
    unseen = most * rules.largest_prior
    return support[first] > max([unseen, *(weight + most * rules.prior(text) for text, weight in rivals.items())])


def _outvotes_in_every_slot(voices: Sequence[Voice], more: float) -> bool:
    """Whether one voice weighs more in any slot than all others could together, with so much ``more`` to come."""
    least = [min((*voice.weights, voice.silence)) for voice in voices]
    if not voices:
        return False
    first = max(range(len(voices)), key=lambda number: least[number])
    others = [max((*voice.weights, voice.silence)) for number, voice in enumerate(voices) if number != first]
    return least[first] > fsum(others) + more


def posterior(read: Sequence[NBest], rules: VoteRules) -> float:
    """How probable it is that a further window says what those read so far say together; ignored ones are left out.

    The mean probability that they give to it, as if half a window more had said something else: the mean of a posterior
    Beta distribution whose prior counts so much against any answer. What a list leaves unsaid counts against its readings.
    However sure they are, one window comes to 0.67 at most, two to 0.8 and three to 0.86: misreadings that a second
    window would not repeat are often sure of themselves.
    """
    heard = [voter for voter in read if rules.counts(voter[0])]
    if not heard:
        return 0.0
    answer = vote(read, rules)[0][0].text
    said = fsum(exp(one.log_prob) for voter in heard for one in voter if one.text == answer)
    return said / (len(heard) + DOUBT)


class FrameFeatures:
    """Features of frames that are encoded when they are first needed, and once."""

    def __init__(self, encode: Callable[[list[int]], Memory]) -> None:
        """encode: the numbers of N frames → their memory, each frame an item of its own."""
        self._encode = encode
        self._rows: dict[int, int] = {}
        self._memory: Memory | None = None

    def regrouped(
        self, regroup: Callable[[Memory, Tensor, Tensor], Memory], windows: Sequence[Sequence[int]]
    ) -> Memory:
        """One item for each window, through a recognizer's ``regroup``; windows: frame numbers."""
        new = [
            frame for frame in dict.fromkeys(frame for window in windows for frame in window) if frame not in self._rows
        ]
        if new:
            self._rows.update(zip(new, range(len(self._rows), len(self._rows) + len(new)), strict=True))
            more = self._encode(new)
            self._memory = more if self._memory is None else with_frames(self._memory, more)
        assert self._memory is not None
        rows, mask = rows_and_mask([[self._rows[frame] for frame in window] for window in windows])
        device = self._memory.frame_tokens.device
        return regroup(self._memory, rows.to(device), mask.to(device))
