"""The trials of an experiment: which points of which spaces, each with all of its settings resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.weights import PUBLISHED, expect_source
from glyphrun.models.zoo import recognizer_settings
from glyphrun.sweeps.decode_settings import with_files
from glyphrun.sweeps.errors import ExperimentError, nearest, said
from glyphrun.sweeps.experiment import Candidate, Experiment, known_keys
from glyphrun.sweeps.policies import GridSearch, Optuna, Resources, Tpe
from glyphrun.sweeps.space import Look, cross, draw
from glyphrun.training.fit import TrainSettings
from glyphrun.training.start import StartSettings

GROUPS = ("train", "start", "decode")  # what a path may begin with that is no setting of the recognizer


class Trial(BaseModel):
    """One point of the search: settings resolved, ``sampled`` as the space's paths.

    Trials of one configuration differ in their seed alone; candidate: its place in the experiment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    number: int
    configuration: int
    candidate: int
    family: str
    recognizer: str
    sampled: dict[str, Any]
    settings: dict[str, Any]
    train: TrainSettings
    start: StartSettings = StartSettings()
    decode: DecodeSettings
    resources: Resources = Resources()


def plan_trials(experiment: Experiment, extended: Sequence[int] = ()) -> list[Trial]:
    """The trials that can be told before any has run: all of them, or those with which a learning searcher starts.

    extended: how many trials were added each time; the earlier ones stay what they are. Raises ExperimentError naming the
    candidate and what is wrong with it.
    """
    repeats = experiment.repeats
    for added in extended:
        if added % repeats:
            raise ExperimentError(f"{added} trials are no multiple of repeats, {repeats}: add a multiple of it")
    points = (
        _grid(experiment, extended) if isinstance(experiment.searcher, GridSearch) else _random(experiment, extended)
    )
    return [
        resolve_trial(experiment, place, configuration * repeats + repeat, sampled)
        for configuration, (place, sampled) in enumerate(points)
        for repeat in range(repeats)
    ]


def trial_count(experiment: Experiment, extended: Sequence[int] = ()) -> int:
    """How many trials the experiment has in the end."""
    if isinstance(experiment.searcher, GridSearch):
        return len(plan_trials(experiment, extended))
    return experiment.trials + sum(extended)


def resolve_trial(experiment: Experiment, place: int, number: int, sampled: Mapping[str, Any]) -> Trial:
    """A trial from what is sampled for it; place: of its candidate. Raises ExperimentError if the settings do not fit."""
    candidate = experiment.candidates[place]
    declared: dict[str, Any] = {
        "train": {**experiment.train.model_dump(), **candidate.train, "seed": experiment.seed + number},
        "start": candidate.start.model_dump(),
        "decode": candidate.decode.model_dump(),
        "changes": dict(candidate.changes),
    }
    for path, value in sampled.items():
        keys = path.split(".")
        declared = set_path(declared, keys if keys[0] in GROUPS else ["changes", *keys], value)
    try:
        resolved = recognizer_settings(candidate.recognizer, declared["changes"]).model_dump(mode="json")
        trained = TrainSettings.model_validate(declared["train"])
        started = StartSettings.model_validate(declared["start"])
        decoded = DecodeSettings.model_validate(declared["decode"])
        if started.weights is not None:
            expect_source(started.weights)
            started = started.model_copy(update={"weights": _from_anywhere(started.weights)})
        if resolved.get("source") is not None:
            resolved["source"] = _from_anywhere(resolved["source"])
        decoded = DecodeSettings.model_validate(with_files(decoded.model_dump(mode="json"), Path.cwd()))
    except ValidationError as error:
        raise ExperimentError(
            f"candidate {candidate.family!r} with {dict(sampled)}: {said(error, known_keys())}"
        ) from None
    except ValueError as error:
        raise ExperimentError(f"candidate {candidate.family!r} with {dict(sampled)}: {error}") from None
    return Trial(
        id=f"{number + 1:03}-{candidate.recognizer}",
        number=number,
        configuration=number // experiment.repeats,
        candidate=place,
        family=candidate.family,
        recognizer=candidate.recognizer,
        sampled=dict(sampled),
        settings=resolved,
        train=trained,
        start=started,
        decode=decoded,
        resources=experiment.resources_of(candidate),
    )


def _from_anywhere(source: str) -> str:
    """The absolute path of a file or folder, since trials run elsewhere; names and urls stay as they are."""
    path = Path(source).expanduser()
    named = source in PUBLISHED or "://" in source
    return source if named or not path.exists() else str(path.absolute())


def looker(experiment: Experiment, candidate: Candidate) -> Look:
    """What a trial of a candidate would have at a path: what is sampled, or what it is declared or by default.

    Raises ExperimentError for a path that leads nowhere.
    """

    @cache
    def settled() -> dict[str, Any]:
        try:
            recognizer = recognizer_settings(candidate.recognizer, dict(candidate.changes)).model_dump(mode="json")
        except ValidationError as error:
            raise ExperimentError(f"candidate {candidate.family!r}: {said(error, known_keys())}") from None
        except ValueError as error:
            raise ExperimentError(f"candidate {candidate.family!r}: {error}") from None
        return {
            **recognizer,
            "train": {**experiment.train.model_dump(mode="json"), **candidate.train},
            "start": candidate.start.model_dump(mode="json"),
            "decode": candidate.decode.model_dump(mode="json"),
        }

    def look(sampled: Mapping[str, Any], path: str) -> Any:
        if path in sampled:
            return sampled[path]
        value: Any = settled()
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ExperimentError(
                    f"candidate {candidate.family!r}: a condition names {path}, and there is no setting {key!r}"
                    f"{nearest(key, value if isinstance(value, dict) else ())}"
                )
            value = value[key]
        return value

    return look


def startup(experiment: Experiment) -> int:
    """How many configurations are drawn before a learning searcher proposes any."""
    configurations = experiment.trials // experiment.repeats
    searcher = experiment.searcher
    return min(searcher.startup, configurations) if isinstance(searcher, Tpe | Optuna) else configurations


def _random(experiment: Experiment, extended: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """Candidates in turn, each with its points."""
    points = _batch(experiment, 0, startup(experiment), np.random.default_rng(experiment.seed))
    if isinstance(experiment.searcher, Tpe | Optuna):
        return points
    for number, added in enumerate(extended):
        rng = np.random.default_rng([experiment.seed, number + 1])
        points += _batch(experiment, len(points), added // experiment.repeats, rng)
    return points


def _batch(
    experiment: Experiment, first: int, count: int, rng: np.random.Generator
) -> list[tuple[int, dict[str, Any]]]:
    candidates = experiment.candidates
    places = [number % len(candidates) for number in range(first, first + count)]
    drawn = [
        iter(_drawn(experiment, candidate, places.count(place), rng)) for place, candidate in enumerate(candidates)
    ]
    return [(place, next(drawn[place])) for place in places]


def _drawn(experiment: Experiment, candidate: Candidate, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    try:
        return draw(candidate.space, count, rng, looker(experiment, candidate)) if count else []
    except ExperimentError as error:
        raise ExperimentError(_of(candidate, error)) from None


def _grid(experiment: Experiment, extended: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """First points of all candidates, then second ones, so that a budget that ends early has met each."""
    if extended:
        raise ExperimentError("the searcher grid has tried every combination: there is nothing to add")
    crossed: list[tuple[int, int, dict[str, Any]]] = []
    for place, candidate in enumerate(experiment.candidates):
        try:
            points = list(cross(candidate.space, looker(experiment, candidate)))
        except ExperimentError as error:
            raise ExperimentError(_of(candidate, error)) from None
        crossed += [(number, place, point) for number, point in enumerate(points)]
    crossed.sort(key=lambda one: one[:2])
    stated, found = experiment.trials, len(crossed) * experiment.repeats
    if "trials" in experiment.model_fields_set and stated != found:
        raise ExperimentError(f"trials is {stated} and the grid has {found}: leave trials out, or change the grid")
    return [(place, point) for _, place, point in crossed]


def _of(candidate: Candidate, error: ExperimentError) -> str:
    said_of = f"candidate {candidate.family!r}"
    return str(error) if str(error).startswith(said_of) else f"{said_of}: {error}"


def set_path(settings: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """Settings with one value changed, at a path of keys."""
    if len(path) == 1:
        return {**settings, path[0]: value}
    return {**settings, path[0]: set_path(settings.get(path[0]) or {}, path[1:], value)}
