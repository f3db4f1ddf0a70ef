"""The reading of one item, and how it follows from what was read, voted for and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any

from glyphrun.decoding.confidence import calibrate
from glyphrun.decoding.rescore import CorrectedHypothesis
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, MemberBallot

if TYPE_CHECKING:  # a server that takes requests has predictions, and starts without torch
    from glyphrun.models.recognizer import TokenHypothesis
    from glyphrun.subwords import SubwordCodec
    from glyphrun.text import Codec


@dataclass(frozen=True)
class Prediction:
    """The reading of one item.

    text: the reading, "" if nothing is readable. confidence: its probability (share of the votes where frames are read
    alone or windows vote). n_best: readings, best first. votes: what each frame or each window says; where all frames
    are read together, what each frame says alone if that was asked for. members: what each recognizer of an ensemble says.
    timings: milliseconds of the batch that the item was read in, a stage each. provenance: where the weights come from.
    batch: how many requests a server read together with it, itself among them.
    """

    text: str
    confidence: float
    n_best: tuple[Hypothesis, ...]
    votes: tuple[Ballot, ...]
    abstained: bool
    members: tuple[MemberBallot, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    batch: int = 1


def spelt(found: TokenHypothesis, codec: Codec | SubwordCodec) -> Hypothesis:
    """What a hypothesis of tokens says as text."""
    return Hypothesis(codec.decode(found.tokens), found.log_prob, found.token_log_probs, codec.pieces(found.tokens))


def conclude(n_best: Sequence[Hypothesis], settings: DecodeSettings, **rest: Any) -> Prediction:
    """The answer that follows from what was read, voted for and corrected; rest: the other fields of a prediction."""
    n_best = calibrate(n_best, settings.calibration)
    best = n_best[0]
    confidence = exp(best.log_prob)
    return Prediction(
        text=best.text,
        confidence=confidence,
        # A corrected text stands before the list that was read, which it does not shorten.
        n_best=tuple(n_best[: settings.n_best + isinstance(best, CorrectedHypothesis)]),
        abstained=confidence < settings.abstain_below,
        **rest,
    )
