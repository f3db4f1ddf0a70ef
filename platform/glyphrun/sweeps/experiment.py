"""The experiment file: recognizers with what is searched of each, training, budget and scheduler."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from glyphrun.decoding.settings import Calibration, DecodeSettings
from glyphrun.models.weights import expect_source
from glyphrun.models.zoo import ZOO, recognizer_settings
from glyphrun.overlay import overlay
from glyphrun.training.fit import TrainSettings
from glyphrun.training.start import StartSettings


class ExperimentError(ValueError):
    """An experiment file that cannot be used, with the file, the key and what to do."""


class Choice(BaseModel):
    """One of some values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: list[Any] = Field(min_length=1)

    def sample(self, share: float) -> Any:
        """share: 0..1."""
        return self.choice[min(int(share * len(self.choice)), len(self.choice) - 1)]


class LogUniform(BaseModel):
    """A number whose logarithm is uniform between the two ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        low, high = self.log_uniform
        if not 0 < low < high:
            raise ValueError(f"log_uniform needs two positive numbers, the smaller first, not {low} and {high}")
        return self

    def sample(self, share: float) -> float:
        """share: 0..1."""
        low, high = self.log_uniform
        return float(f"{low * (high / low) ** share:.3g}")


class Candidate(BaseModel):
    """A family of trials: a recognizer of the zoo, what is changed in it, what it starts from, and what is searched.

    Keys of ``space`` are paths: ``train.…`` of the training settings, ``start.…`` of what training starts from (such as
    ``start.lora.rank``), anything else of the recognizer's settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    recognizer: str
    changes: dict[str, Any] = {}
    train: dict[str, Any] = {}
    start: StartSettings = StartSettings()
    space: dict[str, Choice | LogUniform] = {}
    decode: DecodeSettings = DecodeSettings()


class Asha(BaseModel):
    """Asynchronous successive halving (arXiv 1810.05934): of the trials that reach a rung, 1 / reduction goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(400, ge=1)
    reduction: int = Field(3, ge=2)


class Budget(BaseModel):
    """latency_ms: the most that one tracklet of ``frames`` frames may take, median, bytes to text, on a trial's cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: float = Field(50.0, gt=0)
    frames: int = Field(8, ge=1)


class Experiment(BaseModel):
    """A sweep as it is declared. trials are spread evenly over the candidates.

    workers_per_trial: processes that share each batch of a trial, on one machine or several, each with cpus_per_trial
    cores and, where there are GPUs, one of them. abstain_for_precision: the share of the winner's answers that is to be
    right; those under the confidence that attains it on val are marked abstained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    candidates: list[Candidate] = Field(min_length=1)
    train: TrainSettings = TrainSettings()
    scheduler: Asha = Asha()
    budget: Budget = Budget()
    trials: int = Field(9, ge=1)
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_trial: int = Field(1, ge=1)
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
        return self

    @model_validator(mode="after")
    def _rungs_fit(self) -> Experiment:
        for candidate in self.candidates:
            steps = candidate.train.get("steps", self.train.steps)
            if isinstance(steps, int) and steps < self.scheduler.grace_steps:
                raise ValueError(
                    f"{candidate.family!r} trains {steps} steps and scheduler.grace_steps is "
                    f"{self.scheduler.grace_steps}: no trial would reach the first rung; lower grace_steps"
                )
        return self

    def hash(self) -> str:
        """sha256 of the declaration, whatever the order of its keys."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Trial(BaseModel):
    """One point of the search: settings resolved, ``sampled`` as the space's paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    family: str
    recognizer: str
    sampled: dict[str, Any]
    settings: dict[str, Any]
    train: TrainSettings
    start: StartSettings = StartSettings()
    decode: DecodeSettings


def load_experiment(path: Path) -> Experiment:
    """An experiment file, laid over the one it ``extends``. Raises ExperimentError naming file and key."""
    try:
        return Experiment.model_validate(_load(path, ()))
    except ValidationError as error:
        raise ExperimentError(f"{path}: {_said(error)}") from None


def plan_trials(experiment: Experiment) -> list[Trial]:
    """The trials of an experiment: a seeded Latin hypercube for each candidate (McKay 1979), candidates in turn."""
    rng = np.random.default_rng(experiment.seed)
    counts = [
        len(range(place, experiment.trials, len(experiment.candidates))) for place in range(len(experiment.candidates))
    ]
    drawn = [_sample(candidate, count, rng) for candidate, count in zip(experiment.candidates, counts, strict=True)]
    trials = []
    for number in range(experiment.trials):
        place = number % len(experiment.candidates)
        candidate, sampled = experiment.candidates[place], drawn[place][number // len(experiment.candidates)]
        declared: dict[str, Any] = {
            "train": {**experiment.train.model_dump(), **candidate.train, "seed": experiment.seed + number},
            "start": candidate.start.model_dump(),
            "changes": dict(candidate.changes),
        }
        for path, value in sampled.items():
            keys = path.split(".")
            declared = _set(declared, keys if keys[0] in ("train", "start") else ["changes", *keys], value)
        try:
            resolved = recognizer_settings(candidate.recognizer, declared["changes"]).model_dump(mode="json")
            trained = TrainSettings.model_validate(declared["train"])
            started = StartSettings.model_validate(declared["start"])
            if started.weights is not None:
                expect_source(started.weights)
        except ValidationError as error:
            raise ExperimentError(f"candidate {candidate.family!r} with {sampled}: {_said(error)}") from None
        except ValueError as error:
            raise ExperimentError(f"candidate {candidate.family!r} with {sampled}: {error}") from None
        trials.append(
            Trial(
                id=f"{number + 1:03}-{candidate.recognizer}",
                family=candidate.family,
                recognizer=candidate.recognizer,
                sampled=sampled,
                settings=resolved,
                train=trained,
                start=started,
                decode=candidate.decode,
            )
        )
    return trials


def _sample(candidate: Candidate, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    strata = {path: (rng.permutation(count) + rng.random(count)) / max(count, 1) for path in candidate.space}
    return [
        {path: dimension.sample(float(strata[path][number])) for path, dimension in candidate.space.items()}
        for number in range(count)
    ]


def _load(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise ExperimentError(f"{path} extends itself")
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from None
    if not isinstance(declared, dict):
        raise ExperimentError(f"{path} holds no keys: an experiment starts with name:")
    base = declared.pop("extends", None)
    return declared if base is None else overlay(_load(path.parent / base, (*chain, path)), declared)


def _set(settings: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**settings, path[0]: value}
    return {**settings, path[0]: _set(settings.get(path[0]) or {}, path[1:], value)}


def _said(error: ValidationError) -> str:
    """What is wrong with a key, and the nearest known one."""
    # A space that fails as one kind of range is reported for each kind; what a validator of ours says is the sentence.
    first = next((one for one in error.errors() if one["type"] == "value_error"), error.errors()[0])
    place = ".".join(map(str, first["loc"])) or "the file"
    if first["type"] == "extra_forbidden":
        key, near = str(first["loc"][-1]), get_close_matches(str(first["loc"][-1]), _known_keys(), n=1, cutoff=0.5)
        hint = f": did you mean {near[0]}?" if near else ""
        return f"unknown key {key!r} at {place}{hint}"
    return f"{place}: {first['msg']}"


def _known_keys() -> set[str]:
    models: set[type[BaseModel]] = {Experiment, Candidate, TrainSettings, StartSettings, Asha, Budget, DecodeSettings}
    models |= {type(recognizer_settings(name)) for name in ZOO}
    nested = {value for model in models for value in _models_in(model)}
    return {name for model in models | nested for name in model.model_fields} | {"extends", "choice", "log_uniform"}


def _models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    kinds = {kind for field in model.model_fields.values() for kind in (field.annotation, *get_args(field.annotation))}
    return {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
