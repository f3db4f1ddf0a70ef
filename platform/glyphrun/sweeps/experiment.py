"""The experiment file's schema: recognizers with what is searched of each, training, budget, searcher and scheduler."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from glyphrun.decoding.settings import Calibration, DecodeSettings
from glyphrun.models.zoo import ZOO, recognizer_settings
from glyphrun.sweeps.decode_search import DecodeSearch
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.policies import (
    AnyPick,
    AnyScheduler,
    AnySearcher,
    Asha,
    Best,
    Budget,
    Cheapest,
    GridSearch,
    HyperBand,
    Median,
    Objective,
    Optuna,
    Pbt,
    Random,
    Resources,
    Tpe,
)
from glyphrun.sweeps.space import KINDS, AnyDimension, Choice, Grid, Integer, LogUniform, Uniform, ordered
from glyphrun.training.fit import TrainSettings
from glyphrun.training.start import StartSettings


class Candidate(BaseModel):
    """A family of trials: a recognizer of the zoo, what is changed in it, what it starts from, and what is searched.

    Keys of ``space`` are paths: ``train.…`` of the training settings, ``start.…`` of what training starts from (such as
    ``start.lora.rank``), ``decode.…`` of how it is read on val, anything else of the recognizer's settings. ``resources``
    differ from the experiment's in what they state.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    recognizer: str
    changes: dict[str, Any] = {}
    train: dict[str, Any] = {}
    start: StartSettings = StartSettings()
    space: dict[str, AnyDimension] = {}
    decode: DecodeSettings = DecodeSettings()
    resources: Resources = Resources()

    @field_validator("space")
    @classmethod
    def _has_an_order(cls, space: dict[str, AnyDimension]) -> dict[str, AnyDimension]:
        ordered(space)
        for path, dimension in space.items():
            sampled = [
                other
                for other in dimension.when
                if isinstance(dimension, Grid) and other in space and not isinstance(space[other], Grid)
            ]
            if sampled:
                raise ValueError(
                    f"{path} is a grid that waits for {sampled[0]}, which is drawn: make both a grid, or neither"
                )
        return space


class Experiment(BaseModel):
    """A sweep as it is declared. trials are spread evenly over the candidates, ``repeats`` with each configuration.

    dataset: its folder, relative to the file, unless the command names one. objectives: what is to be best, on val; the
    first is what schedulers go by. repeats: trials that differ in nothing but the seed. workers_per_trial: processes that
    share each batch of a trial, on one machine or several, each with the ``resources``. decode_search: ways of reading
    that are tried on the best trials and on ensembles of them before a winner is chosen among all these. pick: which of
    those that meet the budget wins. keep_checkpoints: how many of the best trials keep their weights when the sweep is over,
    beside those on the Pareto front and survivors; all without a word. abstain_for_precision: the share of the winner's
    answers that is to be right; those under the confidence that attains it on val are marked abstained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dataset: str | None = None
    candidates: list[Candidate] = Field(min_length=1)
    train: TrainSettings = TrainSettings()
    objectives: list[Objective] = Field(["exact"], min_length=1)
    budget: Budget = Budget()
    searcher: AnySearcher = Random()
    scheduler: AnyScheduler = Asha()
    trials: int = Field(9, ge=1)
    repeats: int = Field(1, ge=1)
    resources: Resources = Resources()
    workers_per_trial: int = Field(1, ge=1)
    decode_search: DecodeSearch | None = None
    pick: AnyPick = Best()
    keep_checkpoints: int | None = Field(None, ge=1)
    abstain_for_precision: float | None = Field(None, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _confidence_is_settled_once(self) -> Experiment:
        for candidate in self.candidates:
            if candidate.decode.calibration != Calibration():
                raise ValueError(
                    f"{candidate.family!r} states decode.calibration, and a sweep fits the winner's on val: leave it out"
                )
            if candidate.decode.abstain_below and self.abstain_for_precision is not None:
                raise ValueError(
                    f"{candidate.family!r} states decode.abstain_below and the experiment abstain_for_precision, which "
                    "sets it: leave out one of them"
                )
            if candidate.decode.abstain_below and self.decode_search is not None:
                raise ValueError(
                    f"{candidate.family!r} states decode.abstain_below, and with a decode_search the winner may be an ensemble, "
                    "whose confidence is another: state abstain_for_precision"
                )
        search = self.decode_search
        for name in ("calibration", "abstain_below") if search is not None else ():
            assert search is not None
            if any(path.partition(".")[0] == name for path in (*search.base, *search.space)):
                raise ValueError(
                    f"decode_search states {name}, and a sweep settles the winner's confidence on val: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _rungs_fit(self) -> Experiment:
        first = getattr(self.scheduler, "grace_steps", None)
        for candidate in self.candidates:
            steps = candidate.train.get("steps", self.train.steps)
            if first is not None and isinstance(steps, int) and steps < first:
                raise ValueError(
                    f"{candidate.family!r} trains {steps} steps and scheduler.grace_steps is {first}: no trial would reach "
                    "the first rung; lower grace_steps"
                )
        return self

    @model_validator(mode="after")
    def _objectives_can_be_had(self) -> Experiment:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives {', '.join(self.objectives)}: name each once")
        if self.objectives[0] not in ("exact", "cer"):
            raise ValueError(f"the first objective is {self.objectives[0]}, and it must be exact or cer: reorder them")
        if "cost" in self.objectives and self.budget.price_per_hour is None:
            raise ValueError("the objective cost needs budget.price_per_hour, of the machine that will serve")
        if isinstance(self.pick, Cheapest) and self.pick.by == "cost" and self.budget.price_per_hour is None:
            raise ValueError("pick goes by cost, which needs budget.price_per_hour, of the machine that will serve")
        if isinstance(self.searcher, Tpe) and len(self.objectives) > 1:
            raise ValueError(
                "the searcher tpe has one objective: leave out the others, or take the searcher optuna, which has several"
            )
        if isinstance(self.searcher, Optuna) and len(self.objectives) == 1:
            raise ValueError("the searcher optuna has several objectives: name another, or take the searcher tpe")
        return self

    @model_validator(mode="after")
    def _trials_can_be_planned(self) -> Experiment:
        if self.trials % self.repeats and not isinstance(self.searcher, GridSearch):
            raise ValueError(f"trials is {self.trials}, no multiple of repeats, {self.repeats}: change one of them")
        if isinstance(self.scheduler, HyperBand) and isinstance(self.searcher, Tpe | Optuna):
            raise ValueError(
                f"hyperband compares trials that are all known before, and {self.searcher.kind} proposes them one by one: take "
                "the scheduler asha, or the searcher random"
            )
        if isinstance(self.scheduler, Pbt):
            if not isinstance(self.searcher, Random | GridSearch):
                raise ValueError("pbt changes settings itself: take the searcher random or grid")
            if self.workers_per_trial > 1:
                raise ValueError("pbt goes on from others' checkpoints in one process: leave out workers_per_trial")
            if self.repeats > 1:
                raise ValueError("pbt changes the settings of each trial by itself: leave out repeats")
            for candidate in self.candidates:
                evaluate_every = candidate.train.get("evaluate_every", self.train.evaluate_every)
                if isinstance(evaluate_every, int) and self.scheduler.every_steps % evaluate_every:
                    raise ValueError(
                        f"scheduler.every_steps is {self.scheduler.every_steps} and {candidate.family!r} is evaluated every "
                        f"{evaluate_every} steps: make it a multiple"
                    )
                if not perturbed(candidate):
                    raise ValueError(
                        f"pbt changes train.learning_rate and the like: {candidate.family!r} searches none"
                    )
        return self

    def resources_of(self, candidate: Candidate) -> Resources:
        """What each worker of a candidate's trials reserves."""
        return candidate.resources.over(self.resources)

    @property
    def accuracy(self) -> Literal["exact", "cer"]:
        """The first objective."""
        return "cer" if self.objectives[0] == "cer" else "exact"

    def hash(self) -> str:
        """sha256 of what decides the results, whatever the order of its keys.

        Not of where the data lie, which have a hash of their own, nor of how much may be spent on them.
        """
        declared = self.model_dump(mode="json", exclude={"dataset": True, "budget": {"hours", "steps"}})
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()


# What PBT may change in a training that goes on: not its length, and nothing that its optimizer's state depends on.
PERTURBED = (
    "train.learning_rate",
    "train.clip",
    "train.batch_size",
    "train.frames_per_item",
    "train.accumulate",
    "train.augment.",
)


def perturbed(candidate: Candidate) -> dict[str, AnyDimension]:
    """The dimensions of a candidate that population based training may change on the way."""
    return {path: dimension for path, dimension in candidate.space.items() if path.startswith(PERTURBED)}


def known_keys() -> set[str]:
    """Every key that an experiment may have anywhere, for whoever has mistyped one."""
    models: set[type[BaseModel]] = {Experiment, Candidate, TrainSettings, StartSettings, DecodeSettings, DecodeSearch}
    models |= {Asha, HyperBand, Median, Pbt, Tpe, Optuna, Best, Cheapest, Choice, Grid, Integer, Uniform, LogUniform}
    models |= {type(recognizer_settings(name)) for name in ZOO}
    nested = {value for model in models for value in _models_in(model)}
    return {name for model in models | nested for name in model.model_fields} | {"extends", *KINDS}


def _models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    kinds = {kind for field in model.model_fields.values() for kind in (field.annotation, *get_args(field.annotation))}
    return {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}


__all__ = ["Candidate", "Experiment", "ExperimentError", "known_keys", "perturbed"]
