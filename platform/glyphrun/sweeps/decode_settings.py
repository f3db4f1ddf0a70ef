"""What a decode sweep crosses: decode settings and who reads with them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glyphrun.decoding.settings import Calibration, CorrectionSettings, DecodeSettings, VoteMethod
from glyphrun.overlay import overlay
from glyphrun.sweeps.errors import ExperimentError

GREEDY = "greedy"
RANKING, EMITTING = "query-digits", "line-ctc"  # kinds that rank every answer, and that read along a line
FILES = ("lexicon", "confusions", "language_model")
UNTOLD = ("n_best", "calibration", "vote_floor", "length_priors", "seed")  # told only of points that need it


class DecodeSpace(BaseModel):
    """A settings file.

    base: decode settings that all have, over the bundle's own. space: for each path of a decode setting, such as
    ``width`` or ``correction.lm_weight``, the values that are crossed with all others. members: who reads, each a list of
    readers by name (the folder's, or for a run's snapshots ``step-000050``); all readers alone if it is empty.
    ensemble_vote: how several of them vote, all with the settings of the first. Settings without influence on what is read
    (a width without a beam, any width of a recognizer that ranks its whole answer space) are as they are by default, and
    points that are equal then are read once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any] = {}
    space: dict[str, list[Any]] = {}
    members: list[list[str]] = []
    ensemble_vote: list[VoteMethod] = Field(["majority"], min_length=1)


class DecodePoint(BaseModel):
    """One setting of a decode sweep: who reads, how, and how several of them vote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[str, ...]
    decode: DecodeSettings
    ensemble_vote: VoteMethod | None = None

    @property
    def name(self) -> str:
        """The point in words: who reads, and what differs from a bare greedy reading."""
        plain = DecodeSettings().model_dump(exclude={*UNTOLD, "abstain_below"})
        own = self.decode.model_dump(mode="json", exclude_none=True)
        told = [_told(key, own[key]) for key, value in plain.items() if key in own and own[key] != value]
        who = f"{len(self.members)} members, {self.ensemble_vote}" if self.ensemble_vote else self.members[0]
        return ", ".join([who, *(told or [GREEDY])])

    def key(self, readers: Mapping[str, str], data: str) -> str:
        """A hash of all that its result depends on; readers: a hash of each member's files, data: of the items."""
        declared = {
            "files": _hashes_of_files(self.decode.correction),
            "decode": self.decode.model_dump(mode="json"),
            "members": [readers[member] for member in self.members],
            "vote": self.ensemble_vote,
            "data": data,
        }
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:20]


def distinct_names(points: Sequence[DecodePoint]) -> list[str]:
    """The name of each point; those that would share one also tell in which of the other settings they differ."""
    shared = Counter(point.name for point in points)
    names = []
    for point in points:
        alike = [other for other in points if other.name == point.name]
        told = []
        for key in UNTOLD if shared[point.name] > 1 else ():
            value = getattr(point.decode, key)
            if any(getattr(other.decode, key) != value for other in alike):
                told.append(_told(key, value.temperature if key == "calibration" else value))
        if len({other.members for other in alike}) > 1:
            told.insert(0, "+".join(point.members))
        names.append(", ".join([point.name, *told]))
    return names


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


def in_folder(space: DecodeSpace, folder: Path) -> DecodeSpace:
    """A space whose files of a folder are named by absolute paths, so that they are found from anywhere."""
    values = {key: [_with_file(key, value, folder) for value in values] for key, values in space.space.items()}
    return space.model_copy(update={"base": with_files(space.base, folder), "space": values})


def plan_points(
    space: DecodeSpace, own: Mapping[str, DecodeSettings], kinds: Mapping[str, str]
) -> tuple[list[DecodePoint], int]:
    """Every different point of a space, and how many combinations were left out because they contradict themselves.

    own: each reader's own decode settings; kinds: of each reader's recognizer. Raises ExperimentError for an unknown setting or reader, or if nothing is left.
    """
    for path in (*space.base, *space.space):
        _check_path(path)
    unknown = [name for group in space.members for name in group if name not in own]
    if unknown:
        raise ExperimentError(f"members: no reader is called {unknown[0]!r}: there are {', '.join(own)}")
    for named in space.members:
        if not named:
            raise ExperimentError("members: a group without readers reads nothing: name one, or leave it out")
        if len(set(named)) < len(named):
            raise ExperimentError(f"members: {Counter(named).most_common(1)[0][0]} votes twice: name every reader once")
    groups = [tuple(group) for group in space.members] or [(name,) for name in own]
    points: dict[DecodePoint, None] = {}
    left_out, reason = 0, ""
    for group, values in product(groups, product(*space.space.values())):
        declared = overlay(own[group[0]].model_dump(mode="json"), space.base)
        for path, value in zip(space.space, values, strict=True):
            declared = _set(declared, path.split("."), value)
        for vote in space.ensemble_vote if len(group) > 1 else [None]:
            try:
                decode = DecodeSettings.model_validate(
                    _without_influence_gone(declared, {kinds[name] for name in group}, vote is None)
                )
            except ValidationError as error:
                left_out, reason = left_out + 1, str(error.errors()[0]["msg"])
                continue
            points[DecodePoint(members=group, decode=decode, ensemble_vote=vote)] = None
    if not points:
        raise ExperimentError(f"no combination of the space can be read with: {reason}")
    return list(points), left_out


def with_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Decode settings whose correction names files of a folder by absolute paths, so that they are found from anywhere."""
    correction = settings.get("correction")
    if not isinstance(correction, dict):
        return settings
    files = {key: _absolute(correction[key], folder) for key in FILES if key in correction}
    return {**settings, "correction": {**correction, **files}}


def greedy_of(point: DecodePoint) -> DecodePoint:
    """What a point is compared with: its first member alone, greedy and without correction or votes of members."""
    bare = DecodeSettings(
        windows=point.decode.windows,
        window_frames=point.decode.window_frames,
        vote_floor=point.decode.vote_floor,
        length_priors=point.decode.length_priors,
        calibration=point.decode.calibration,
    )
    return DecodePoint(members=point.members[:1], decode=bare)


def _without_influence_gone(declared: dict[str, Any], kinds: set[str], alone: bool) -> dict[str, Any]:
    """Settings that have no influence on what is read, as they are by default; kinds: of the recognizers that read."""
    plain = DecodeSettings().model_dump(mode="json")
    search = declared.get("search", GREEDY)
    correction = declared.get("correction") or {}
    shallow = correction.get("lm_fusion") == "shallow"
    if search == "beam" and not shallow and not declared.get("length_penalty"):
        # A beam of one is greedy where tokens are generated; along a line it sums paths, of which greedy takes the best.
        greedy = declared.get("width", 1) == 1 and not declared.get("cloze_rescore") and EMITTING not in kinds
        search = GREEDY if greedy or kinds == {RANKING} else search
    idle = ["abstain_below"]
    if search != "beam":
        idle += ["width", "length_penalty", "early_stop", "cloze_rescore"]
        if search != "sample" and alone and not correction and RANKING not in kinds:
            idle.append("n_best")
    elif kinds == {RANKING}:
        idle += ["width", "early_stop"]
    if search != "sample":
        idle += ["temperature", "top_k", "top_p", "samples", "seed"]
    return {**declared, "search": search, **{key: plain[key] for key in idle}}


def _told(key: str, value: Any) -> str:
    if key == "search":
        return str(value)
    if key != "correction":
        return f"{key.replace('_', ' ')} {value}"
    plain = CorrectionSettings(lexicon="any").model_dump()
    files = [Path(value[name]).name for name in FILES if value.get(name)]
    changed = [
        _told(name, value[name]) for name in plain if name not in FILES and value.get(name, plain[name]) != plain[name]
    ]
    return " ".join(["corrected by", " and ".join(files)]) + (f" ({', '.join(changed)})" if changed else "")


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


def _hashes_of_files(correction: CorrectionSettings | None) -> dict[str, str]:
    """Of the files that correction names by absolute paths; those in a bundle are known by the bundle's hashes."""
    named = {name: getattr(correction, name) for name in FILES} if correction else {}
    paths = {name: Path(value) for name, value in named.items() if value and Path(value).is_absolute()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}


def _check_path(path: str) -> None:
    first, _, rest = path.partition(".")
    groups: dict[str, type[BaseModel]] = {"correction": CorrectionSettings, "calibration": Calibration}
    if first not in DecodeSettings.model_fields:
        raise ExperimentError(f"space: no decode setting is called {first!r}{_near(first, DecodeSettings)}")
    if rest and (first not in groups or rest not in groups[first].model_fields):
        hint = _near(rest, groups[first]) if first in groups else ""
        raise ExperimentError(f"space: {first} has no setting {rest!r}{hint}")


def _near(key: str, model: type[BaseModel]) -> str:
    near = get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near and near[0] != key else ""


def _set(settings: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**settings, path[0]: value}
    return {**settings, path[0]: _set(settings.get(path[0]) or {}, path[1:], value)}
