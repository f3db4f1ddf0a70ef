"""Experiment files: one laid over the one that it extends, with what the command line sets, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from glyphrun.models.zoo import ZOO, recognizer_settings
from glyphrun.overlay import overlay
from glyphrun.sweeps.decode_settings import in_folder
from glyphrun.sweeps.errors import ExperimentError, nearest, said
from glyphrun.sweeps.experiment import Experiment, known_keys
from glyphrun.sweeps.policies import DEFAULT_KINDS
from glyphrun.sweeps.readers import Known


def load_experiment(path: Path, sets: Sequence[str] = ()) -> Experiment:
    """An experiment file, laid over the one it ``extends``, with values set as ``a.b=c``.

    Raises ExperimentError naming file and key.
    """
    declared = _load(path, ())
    for one in sets:
        declared = set_value(declared, one)
    try:
        experiment = Experiment.model_validate(declared)
    except ValidationError as error:
        raise ExperimentError(f"{path}: {said(error, known_keys())}") from None
    if experiment.decode_search is not None:
        anchored = in_folder(experiment.decode_search, path.parent)
        experiment = experiment.model_copy(update={"decode_search": anchored})
        _check_decode_search(experiment, path)
    return experiment


def dataset_of(experiment: Experiment, named: Path | None) -> Path:
    """Where the data lie: in the folder that was named, else where the experiment says. Raises ExperimentError if neither."""
    if named is None and experiment.dataset is None:
        raise ExperimentError(
            f"{experiment.name} names no dataset: give its folder behind the experiment, or set dataset"
        )
    return (named or Path(str(experiment.dataset))).absolute()


def set_value(declared: dict[str, Any], one: str) -> dict[str, Any]:
    """A declaration with one value set: ``a.b=c``, the value in YAML; candidates by their number or family.

    Raises ExperimentError for a path that leads nowhere.
    """
    path, equals, text = one.partition("=")
    if not equals or not path:
        raise ExperimentError(f"--set {one}: it has the form a.b=c, such as train.steps=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--set {one}: {text!r} is no YAML: {error}") from None
    changed: dict[str, Any] = _set(declared, path, value, path)
    return changed


def _set(inside: Any, path: str, value: Any, whole: str, *, dotted: bool = False) -> Any:
    """dotted: keys of this mapping are paths themselves, as those of a space."""
    if not path:
        return value
    if isinstance(inside, list):
        key, _, rest = path.partition(".")
        families = [str(one.get("family")) for one in inside if isinstance(one, dict)]
        named = [place for place, family in enumerate(families) if path == family or path.startswith(f"{family}.")]
        if key.isdigit() and int(key) < len(inside):
            place = int(key)
        elif len(named) == 1:
            place, rest = named[0], path[len(families[named[0]]) + 1 :]
        else:
            raise ExperimentError(
                f"--set {whole}: {key!r} is none of the {len(inside)} that are there, from 0 on"
                + (f", nor one family alone of {', '.join(families)}" if families else "")
                + nearest(key, families)
            )
        return [_set(one, rest, value, whole) if number == place else one for number, one in enumerate(inside)]
    if inside is not None and not isinstance(inside, dict):
        raise ExperimentError(f"--set {whole}: what comes before {path!r} is {inside!r}, which has no keys")
    inside = inside or {}
    # Keys may hold dots, so a key that is there goes before one that would be made.
    there = [str(key) for key in inside if path == str(key) or path.startswith(f"{key}.")]
    key = max(there, key=len, default=path if dotted else path.partition(".")[0])
    return {
        **inside,
        key: _set(inside.get(key), path[len(key) + 1 :], value, whole, dotted=key in ("space", "when")),
    }


def experiment_schema() -> dict[str, Any]:
    """The JSON Schema of an experiment file, for editors."""
    schema = Experiment.model_json_schema()
    candidate = schema["$defs"]["Candidate"]["properties"]
    candidate["recognizer"]["enum"] = sorted(ZOO)
    candidate["train"] = {"$ref": "#/$defs/TrainSettings"}
    schema["title"] = "A glyphrun experiment"
    schema["properties"] = {
        "extends": {"type": "string", "description": "The file that this one is laid over, relative to it."},
        **schema["properties"],
    }
    # What a file leaves out may be in the one that it extends.
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


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
    if isinstance(declared.get("dataset"), str):
        declared["dataset"] = str((path.parent / declared["dataset"]).absolute())
    base = declared.pop("extends", None)
    return declared if base is None else _lay(_load(path.parent / base, (*chain, path)), declared)


def _lay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes over a base; a scheduler or searcher of another kind shares nothing with the one that it replaces."""
    kept = dict(base)
    for key, default in DEFAULT_KINDS.items():
        old, new = base.get(key), changes.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            before = old.get("kind", default)
            if new.get("kind", before) != before:
                kept.pop(key)
    return overlay(kept, changes)


def _check_decode_search(experiment: Experiment, path: Path) -> None:
    """Raises ExperimentError for a decode setting that there is none of, or that no candidate can be read with."""
    assert experiment.decode_search is not None
    for candidate in experiment.candidates:
        try:
            kind = recognizer_settings(candidate.recognizer, dict(candidate.changes)).kind
        except ValueError:
            continue  # it is told when trials are planned
        alone = Known({candidate.family: candidate.decode}, {candidate.family: kind}, {})
        try:
            experiment.decode_search.points([candidate.family], alone)
        except ExperimentError as error:
            raise ExperimentError(f"{path}: decode_search: {error}") from None
