"""How an encoded item becomes text: the settings that travel with a bundle and are swept without training again."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VoteMethod = Literal["sum", "majority", "confidence", "longest", "rover", "mbr"]
Posterior = Annotated[float, Field(gt=0, le=1)]


class CorrectionSettings(BaseModel):
    """What is known of texts before one is read: a word list, a language model, or both; files lie in the bundle.

    lexicon: a file of words with frequencies; words of it within max_edits edits may stand for what was read.
    lexicon_weight scales how much likelier a text is for its words. confusions: a file of the recognizer's errors on val,
    without which every edit costs the same. language_model: a file of character n-grams (.arpa, or .binary of kenlm), or a
    folder or hub name of a causal model. lm_weight scales its log-probability; length_bonus is added for each character,
    since long texts are always less probable. rerank uses it on the n-best, shallow fusion inside the beam as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lexicon: str | None = None
    lexicon_weight: float = Field(1.0, ge=0)
    max_edits: int = Field(2, ge=0, le=4)
    confusions: str | None = None
    language_model: str | None = None
    lm_weight: float = Field(0.5, ge=0)
    lm_fusion: Literal["rerank", "shallow"] = "rerank"
    length_bonus: float = 0.0

    @property
    def counts_ngrams(self) -> bool:
        """Whether the language model is one of character n-grams, which can follow a beam."""
        return self.language_model is not None and self.language_model.endswith((".arpa", ".binary"))

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> CorrectionSettings:
        if self.lexicon is None and self.language_model is None:
            raise ValueError("correction needs a lexicon or a language_model: name one, or leave correction out")
        if self.confusions is not None and self.lexicon is None:
            raise ValueError("confusions tell which words of a lexicon were misread: name the lexicon too")
        if self.lm_fusion == "shallow" and not self.counts_ngrams:
            raise ValueError(
                f"shallow fusion needs a language_model of characters, a file ending in .arpa or .binary, and not "
                f"{self.language_model}: choose lm_fusion: rerank"
            )
        return self


class Calibration(BaseModel):
    """The log-odds of a confidence are divided by a temperature fitted on val; 1 leaves it as it is.

    temperature is that of whole strings, character_temperature that of characters: where votes are cast, the two
    confidences are not on one scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, gt=0)
    character_temperature: float = Field(1.0, gt=0)


class DecodeSettings(BaseModel):
    """Search, the vote of frames or windows, correction and confidence, in the order in which they act.

    length_penalty: hypotheses are ranked by log-probability over length to this power, the end counted. A beam goes on
    until no open hypothesis can reach the n-best, under a positive penalty mostly to the longest text; with early_stop an
    item is done once ``width`` hypotheses have ended. temperature, top_k, top_p, samples and seed belong to sampling,
    whose n-best are the most probable of the distinct samples. refine_iters counts cloze passes after a greedy or
    non-autoregressive search, cloze_rescore ranks the hypotheses of a beam by one (PARSeq). A recognizer that reads frames together reads a tracklet whole, or as so many ``windows`` of
    ``window_frames`` frames that vote; early_exit stops reading them when the rest can no longer change the answer
    («decided») or once the posterior of what was read so far reaches a number. vote_floor is the probability under which the reading of a
    frame or window is ignored; length_priors weigh readings by their number of characters. vote_least is what the readings
    of an answer must weigh together, in probabilities or in a majority in votes; with less the answer is «nothing
    readable», the -1 of SoccerNet. abstain_below is the
    confidence, calibrated, under which an answer is marked abstained; it keeps its text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: Literal["greedy", "beam", "sample", "non-autoregressive"] = "greedy"
    width: int = Field(1, ge=1, le=64)
    n_best: int = Field(3, ge=1)
    length_penalty: float = 0.0
    early_stop: bool = False
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1)
    seed: int = 0
    refine_iters: int = Field(0, ge=0)
    cloze_rescore: bool = False
    windows: int = Field(1, ge=1)
    window_frames: int | None = Field(None, ge=1)
    early_exit: Literal["decided"] | Posterior | None = None
    vote: VoteMethod = "sum"
    vote_floor: float = Field(0.2, ge=0, le=1)
    length_priors: dict[int, float] | None = None
    vote_least: float = Field(0.0, ge=0, lt=inf)
    correction: CorrectionSettings | None = None
    calibration: Calibration = Calibration()
    abstain_below: float = Field(0.0, ge=0, le=1)

    @field_validator("length_priors")
    @classmethod
    def _priors_allow_something(cls, priors: dict[int, float] | None) -> dict[int, float] | None:
        if priors is None:
            return None
        if any(length < 0 or not 0 <= prior < inf for length, prior in priors.items()) or not any(priors.values()):
            raise ValueError(
                f"length_priors {priors} must be numbers of characters with priors of 0 or more, one of them above 0, "
                "such as {1: 0.39, 2: 0.61}"
            )
        return priors

    @model_validator(mode="after")
    def _consistent(self) -> DecodeSettings:
        if self.search != "beam":
            for name in ("width", "length_penalty", "early_stop", "cloze_rescore"):
                if self._was_changed(name):
                    raise ValueError(f"{name} {getattr(self, name)} needs search: beam; here it is {self.search}")
            if self.correction is not None and self.correction.lm_fusion == "shallow":
                raise ValueError(f"shallow fusion acts inside a beam and the search is {self.search}: set search: beam")
        if self.search != "sample":
            for name in ("temperature", "top_k", "top_p", "samples"):
                if self._was_changed(name):
                    raise ValueError(f"{name} {getattr(self, name)} needs search: sample; here it is {self.search}")
        if self.search == "sample" and self.refine_iters:
            raise ValueError("refinement would replace what was drawn: set refine_iters to 0")
        if self.search == "beam" and self.refine_iters:
            raise ValueError("refinement replaces the probabilities that a beam ranks by: set refine_iters to 0")
        if self.windows > 1 and self.window_frames is None:
            raise ValueError(
                f"windows {self.windows} need window_frames: without it each window would be the whole tracklet"
            )
        if self.vote_least and self.vote == "rover":
            raise ValueError(
                f"vote_least {self.vote_least:g} is held against what the readings of an answer weigh, and rover may answer "
                "what nobody read: take another vote, or abstain_below"
            )
        return self

    def _was_changed(self, name: str) -> bool:
        return getattr(self, name) != type(self).model_fields[name].default
