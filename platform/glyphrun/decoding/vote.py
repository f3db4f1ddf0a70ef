"""Votes: the readings of several frames, or of several windows of frames, become one ranked list of readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log


@dataclass(frozen=True)
class Hypothesis:
    """One reading with the natural logarithm of its probability, and those of its tokens (and of its end).

    pieces: what each token stands for in the text, a character or a subword.
    """

    text: str
    log_prob: float
    token_log_probs: tuple[float, ...]
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ballot:
    """What one frame says, or a window of so many ``frames`` from ``frame`` on; weight 0 if it was ignored."""

    frame: int
    text: str
    confidence: float
    weight: float
    frames: int = 1


def frame_ballots(frames: Sequence[Sequence[Hypothesis]], floor: float) -> list[Ballot]:
    """Each frame's best reading; a frame under the floor, or one that says nothing is readable, weighs 0."""
    ballots = []
    for number, hypotheses in enumerate(frames):
        best = hypotheses[0]
        confidence = exp(best.log_prob)
        weight = confidence if best.text and confidence >= floor else 0.0
        ballots.append(Ballot(number, best.text, confidence, weight))
    return ballots


def vote(frames: Sequence[Sequence[Hypothesis]], floor: float) -> tuple[list[Hypothesis], list[Ballot]]:
    """Sum of probabilities over frames (arXiv 2405.13896); the confidence of a reading is its share of the sum.

    Frames that say «nothing readable» outvote readings only if no frame's reading reaches the floor: an item in which
    the number shows once is readable. The ranked readings keep the token log-probabilities of their surest frame.
    """
    ballots = frame_ballots(frames, floor)
    counted = [ballot for ballot in ballots if ballot.weight > 0]
    if not counted:
        silent = sum(ballot.confidence for ballot in ballots if not ballot.text)
        everything = sum(ballot.confidence for ballot in ballots)
        share = silent / everything if everything else 0.0
        return [Hypothesis("", _log(share), (_log(share),))], ballots
    sums: dict[str, float] = {}
    surest: dict[str, Hypothesis] = {}
    for ballot in counted:
        for hypothesis in frames[ballot.frame]:
            probability = exp(hypothesis.log_prob)
            if hypothesis.text and probability >= floor:
                sums[hypothesis.text] = sums.get(hypothesis.text, 0.0) + probability
                if hypothesis.text not in surest or surest[hypothesis.text].log_prob < hypothesis.log_prob:
                    surest[hypothesis.text] = hypothesis
    total = sum(sums.values())
    ranked = sorted(sums, key=lambda text: (-sums[text], text))
    return [replace(surest[text], log_prob=_log(sums[text] / total)) for text in ranked], ballots


def _log(probability: float) -> float:
    return log(max(probability, 1e-12))
