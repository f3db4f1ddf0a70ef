"""What a decode sweep crosses: a settings file, and the points that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glyphrun.decoding.settings import Calibration, CorrectionSettings, DecodeSettings
from glyphrun.overlay import overlay
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.points import FILES, GREEDY, DecodePoint, MemberVote, distinct

_GROUPS: dict[str, type[BaseModel]] = {"correction": CorrectionSettings, "calibration": Calibration}
RANKING, EMITTING = "query-digits", "line-ctc"  # kinds that rank every answer, and that read along a line


class Crossed(BaseModel):
    """What is crossed.

    base: decode settings that all have, each reader over its bundle's own. space: for each path of a decode setting, such as
    ``width`` or ``correction.lm_weight``, the values that are crossed with all others. ensemble_vote: how several readers
    vote, or «average»: one search over the mean of their log-probabilities, with the settings of the first. Settings without
    influence on what is read (a width without a beam, any width of a recognizer that ranks its whole answer space) are as
    they are by default, and points that are equal then are read once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any] = {}
    space: dict[str, list[Any]] = {}
    ensemble_vote: list[MemberVote] = Field(["majority"], min_length=1)


class DecodeSpace(Crossed):
    """A settings file: what is crossed, and for whom.

    members: who reads, each a list of readers by name (the folder's, or for a run's snapshots ``step-000050``); all readers
    alone if it is empty.
    """

    members: list[list[str]] = []


Space = TypeVar("Space", bound=Crossed)


def load_space(path: Path) -> DecodeSpace:
    """A settings file; files that it names relative to itself become absolute, since trials run elsewhere.

    Raises ExperimentError naming the file, the key and the nearest known one."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from None
    try:
        space = DecodeSpace.model_validate(declared or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ExperimentError(f"{path}: {place}: {first['msg']}{_near(str(first['loc'][-1]), DecodeSpace)}") from None
    return in_folder(space, path.parent)


def in_folder(space: Space, folder: Path) -> Space:
    """A space whose files of a folder are named by absolute paths, so that they are found from anywhere."""
    values = {key: [_with_file(key, value, folder) for value in values] for key, values in space.space.items()}
    return space.model_copy(update={"base": with_files(space.base, folder), "space": values})


def plan_points(
    space: DecodeSpace,
    own: Mapping[str, DecodeSettings],
    kinds: Mapping[str, str],
    inputs: Mapping[str, str] | None = None,
) -> tuple[list[DecodePoint], int]:
    """Every different point of a space, and how many combinations were left out because they contradict themselves.

    own: each reader's own decode settings; kinds: of each reader's recognizer; inputs: its codec and image processor, which
    must be equal where members are averaged. Raises ExperimentError for an unknown setting, value or reader, or if nothing is
    left.
    """
    for path in (*space.base, *space.space):
        _check_path(path)
    groups = _groups(space, own)
    points: list[DecodePoint] = []
    left_out, reason = 0, ""
    for group, values in product(groups, product(*space.space.values())):
        crossed = dict(zip(space.space, values, strict=True))
        for vote in space.ensemble_vote if len(group) > 1 else [None]:
            try:
                if vote == "average" and (why_not := why_not_averaged(group, kinds, inputs or {})):
                    raise ExperimentError(why_not)
                ways = {
                    name: _way(own[name], space.base, crossed, kinds[name], listed=vote not in (None, "average"))
                    for name in group
                }
            except ValidationError as error:
                first = error.errors()[0]
                if first["type"] != "value_error":  # no combination could make sense of it
                    raise ExperimentError(f"space: {_misfit(first)}") from None
                left_out, reason = left_out + 1, str(first["msg"]).removeprefix("Value error, ")
            except ExperimentError as error:
                left_out, reason = left_out + 1, str(error)
            else:
                points.append(DecodePoint.of(ways, vote))
    if not points:
        raise ExperimentError(f"no combination of the space can be read with: {reason}")
    return distinct(points), left_out


def why_not_averaged(members: Sequence[str], kinds: Mapping[str, str], inputs: Mapping[str, str]) -> str:
    """Why the log-probabilities of readers cannot be averaged, as far as that is known without loading them, or nothing."""
    first, *others = members
    for other in others:
        if kinds[other] != kinds[first] or inputs.get(other) != inputs.get(first):
            return (
                f"{first} and {other} differ in their recognizer, codec or image processor, so they cannot be averaged: let "
                "them vote"
            )
    return ""


def with_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Decode settings whose correction names files of a folder by absolute paths, so that they are found from anywhere."""
    correction = settings.get("correction")
    if not isinstance(correction, dict):
        return settings
    files = {key: _absolute(correction[key], folder) for key in FILES if key in correction}
    return {**settings, "correction": {**correction, **files}}


def _groups(space: DecodeSpace, own: Collection[str]) -> list[tuple[str, ...]]:
    for group in space.members:
        if not group:
            raise ExperimentError("members: a group without readers reads nothing: name one, or leave it out")
        for name in group:
            if name not in own:
                raise ExperimentError(f"members: no reader is called {name!r}: there are {', '.join(own)}")
        if len(set(group)) < len(group):
            raise ExperimentError(f"members: {Counter(group).most_common(1)[0][0]} votes twice: name every reader once")
    return [tuple(group) for group in space.members] or [(name,) for name in own]


def _way(
    own: DecodeSettings, base: dict[str, Any], crossed: Mapping[str, Any], kind: str, *, listed: bool
) -> DecodeSettings:
    """How a reader reads with what is crossed over its own settings; listed: whether its n-best are asked for."""
    declared = overlay(own.model_dump(mode="json"), base)
    for path, value in crossed.items():
        declared = _set(declared, path.split("."), value)
    return DecodeSettings.model_validate(_without_influence_gone(declared, kind, listed))


def _without_influence_gone(declared: dict[str, Any], kind: str, listed: bool) -> dict[str, Any]:
    """Settings that have no influence on what a kind of recognizer reads, as they are by default."""
    plain = DecodeSettings().model_dump(mode="json")
    search = declared.get("search", GREEDY)
    correction = declared.get("correction") or {}
    shallow = correction.get("lm_fusion") == "shallow"
    if search == "beam" and not shallow and not declared.get("length_penalty"):
        # A beam of one is greedy where tokens are generated; along a line it sums paths, of which greedy takes the best.
        greedy = declared.get("width", 1) == 1 and not declared.get("cloze_rescore") and kind != EMITTING
        search = GREEDY if greedy or kind == RANKING else search
    idle = ["abstain_below"]
    if search != "beam":
        idle += ["width", "length_penalty", "early_stop", "cloze_rescore"]
        if search != "sample" and not listed and not correction and kind != RANKING:
            idle.append("n_best")
    elif kind == RANKING:
        idle += ["width", "early_stop"]
    if search != "sample":
        idle += ["temperature", "top_k", "top_p", "samples", "seed"]
    return {**declared, "search": search, **{key: plain[key] for key in idle}}


def _with_file(key: str, value: Any, folder: Path) -> Any:
    first, _, rest = key.partition(".")
    if first != "correction":
        return value
    if not rest:
        return with_files({first: value}, folder)[first]
    return _absolute(value, folder) if rest in FILES else value


def _absolute(value: Any, folder: Path) -> Any:
    """The file's absolute path if it lies there; else it is in the bundle, or on the hub."""
    return str((folder / value).absolute()) if isinstance(value, str) and (folder / value).exists() else value


def _check_path(path: str) -> None:
    first, _, rest = path.partition(".")
    if first not in DecodeSettings.model_fields:
        raise ExperimentError(f"space: no decode setting is called {first!r}{_near(first, DecodeSettings)}")
    if rest and (first not in _GROUPS or rest not in _GROUPS[first].model_fields):
        hint = _near(rest, _GROUPS[first]) if first in _GROUPS else ""
        raise ExperimentError(f"space: {first} has no setting {rest!r}{hint}")


def _misfit(error: Mapping[str, Any]) -> str:
    """What is wrong with the value of a setting by itself, whatever the others are."""
    place = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(place[:-1])} has no setting {place[-1]!r}{_near(place[-1], _GROUPS.get(place[0], DecodeSettings))}"
    return f"{place[0] if place[0] not in _GROUPS else '.'.join(place)}: {error['msg']}, not {error['input']!r}"


def _near(key: str, model: type[BaseModel]) -> str:
    near = get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near and near[0] != key else ""


def _set(settings: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**settings, path[0]: value}
    return {**settings, path[0]: _set(settings.get(path[0]) or {}, path[1:], value)}
