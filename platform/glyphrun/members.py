"""How members of an ensemble are heard: what each says of some items, and the one answer that follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glyphrun.decoding.rescore import Corrector, correct_all
from glyphrun.decoding.settings import DecodeSettings, VoteMethod
from glyphrun.decoding.vote import Hypothesis, MemberBallot, combine
from glyphrun.graphemes import graphemes
from glyphrun.prediction import Prediction, conclude

if TYPE_CHECKING:  # a server that takes requests lets members vote, and starts without torch
    import torch

Positive = Annotated[float, Field(gt=0)]


class EnsembleError(RuntimeError):
    """Too few members answered; the message names those that did not, and why."""


class EnsembleSettings(BaseModel):
    """How members are heard, by their names.

    vote: one of the votes, or «average»: one search over the mean of log-probabilities, for members with one codec, one
    image processor and one way of reading. weights: 1 for members that are not named. deadline_ms: how long a member may
    take over a batch of items; one that is later is left out, as is one that fails. quorum: how many members must answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vote: Literal[VoteMethod, "average"] = "mbr"
    weights: dict[str, Positive] = {}
    deadline_ms: dict[str, Positive] = {}
    quorum: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> EnsembleSettings:
        if self.vote == "average" and self.deadline_ms:
            raise ValueError("members that are averaged read in step, so none can be late alone: leave deadline_ms out")
        return self

    def check(self, members: Sequence[str]) -> None:
        """Raises ValueError for a member that there is not, or a quorum that cannot be met."""
        for setting in ("weights", "deadline_ms"):
            for name in getattr(self, setting):
                if name not in members:
                    raise ValueError(f"{setting} names the member {name!r}; there are {', '.join(members)}")
        if self.quorum > len(members):
            raise ValueError(f"a quorum of {self.quorum} cannot be met by {len(members)} members: {', '.join(members)}")


@dataclass(frozen=True)
class Reading:
    """What a member says of the items of a batch; None if it is left out, and ``status`` says why."""

    predictions: Sequence[Prediction] | None
    ms: float | None
    status: str


@dataclass(frozen=True)
class Jury:
    """What the vote of an ensemble depends on besides what its members say; files: the folder of the files of correction."""

    settings: EnsembleSettings
    decode: DecodeSettings
    provenance: dict[str, str]
    files: Path | None = None

    def corrector(self, device: torch.device | None = None) -> Corrector | None:
        """What corrects after the vote. Raises ValueError where it cannot be set up, or belongs inside a search."""
        if self.decode.correction is None:
            return None
        if self.decode.correction.lm_fusion == "shallow":
            raise ValueError("a vote has no beam for lm_fusion: shallow; set it for the members, or choose rerank")
        from glyphrun.correction import load_corrector  # here: most juries correct nothing

        return load_corrector(self.files or Path(), self.decode.correction, device=device)


def vote_of_members(
    readings: Mapping[str, Reading],
    settings: EnsembleSettings,
    decode: DecodeSettings,
    corrector: Corrector | None = None,
    provenance: dict[str, str] | None = None,
) -> list[Prediction]:
    """The answers of members that read the same items, which may have been asked anywhere. Raises EnsembleError.

    «Nothing readable» is a reading like any other here: each member has seen the whole item.
    """
    if settings.vote == "average":
        raise ValueError("an average is no vote of members that have read: read with an Ensemble")
    heard = {name: reading.predictions for name, reading in readings.items() if reading.predictions is not None}
    require_quorum(settings.quorum, heard, readings)
    weights = [settings.weights.get(name, 1.0) for name in heard]
    lists: list[list[Hypothesis]] = []
    ballots: list[tuple[MemberBallot, ...]] = []
    for said in zip(*heard.values(), strict=True):
        ranked, given = combine(
            [prediction.n_best for prediction in said],
            settings.vote,
            floor=decode.vote_floor,
            weights=weights,
            length_priors=decode.length_priors,
            segment=graphemes,
            silence_counts=True,
            least=decode.vote_least,
        )
        own = dict(zip(heard, zip(said, given, strict=True), strict=True))
        lists.append(ranked)
        ballots.append(tuple(ballot_of(name, reading, *own.get(name, ())) for name, reading in readings.items()))
    if corrector is not None:
        lists = correct_all(lists, corrector)
    return [
        conclude(ranked, decode, votes=(), members=members, provenance=provenance or {})
        for ranked, members in zip(lists, ballots, strict=True)
    ]


def ballot_of(name: str, reading: Reading, said: Prediction | None = None, weight: float = 0.0) -> MemberBallot:
    if said is None or reading.predictions is None:
        return MemberBallot(name, "", 0.0, 0.0, reading.ms, reading.status)
    return MemberBallot(name, said.text, said.confidence, weight, reading.ms, reading.status)


def no_features(members: Collection[str]) -> str:
    """Why an ensemble is not asked for features."""
    return f"an ensemble has an encoder for each member and no features of its own: ask one of {', '.join(members)}"


def require_quorum(quorum: int, heard: Collection[str], readings: Mapping[str, Reading]) -> None:
    """Raises EnsembleError if too few members are heard, naming the others."""
    if len(heard) >= quorum:
        return
    silent = "; ".join(f"{name} {reading.status}" for name, reading in readings.items() if name not in heard)
    raise EnsembleError(f"{len(heard)} of the {quorum} members that must answer did: {silent}")
