"""What a decode sweep crosses: decode settings and who reads with them."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glyphrun.decoding.settings import Calibration, CorrectionSettings, DecodeSettings, VoteMethod
from glyphrun.overlay import overlay
from glyphrun.sweeps.experiment import ExperimentError

GREEDY = "greedy"


class DecodeSpace(BaseModel):
    """A settings file.

    base: decode settings that all have, over the bundle's own. space: for each path of a decode setting, such as
    ``width`` or ``correction.lm_weight``, the values that are crossed with all others. members: who reads, each a list of
    readers by name (the folder's, or for a run's snapshots ``step-000050``); all readers alone if it is empty.
    ensemble_vote: how several of them vote. Settings that fit none of the others (a width without a beam) are set to what
    they have no influence on, and equal ones are read once.
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
        plain = DecodeSettings().model_dump(exclude={"n_best", "calibration", "abstain_below", "vote_floor"})
        own = self.decode.model_dump(mode="json", exclude_none=True)
        told = [_told(key, own[key]) for key, value in plain.items() if key in own and own[key] != value]
        who = f"{len(self.members)} members, {self.ensemble_vote}" if self.ensemble_vote else self.members[0]
        return ", ".join([who, *(told or [GREEDY])])

    def key(self, readers: dict[str, str], data: str) -> str:
        """A hash of all that its result depends on; readers: a hash of each member's weights, data: of the items."""
        declared = {
            "decode": self.decode.model_dump(mode="json"),
            "members": [readers[member] for member in self.members],
            "vote": self.ensemble_vote,
            "data": data,
        }
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:20]


def load_space(path: Path) -> DecodeSpace:
    """A settings file. Raises ExperimentError naming the file, the key and the nearest known one."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from None
    try:
        return DecodeSpace.model_validate(declared or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ExperimentError(f"{path}: {place}: {first['msg']}{_near(str(first['loc'][-1]), DecodeSpace)}") from None


def plan_points(space: DecodeSpace, own: dict[str, DecodeSettings]) -> tuple[list[DecodePoint], int]:
    """Every different point of a space, and how many combinations were left out because they contradict themselves.

    own: each reader's own decode settings. Raises ExperimentError for an unknown setting or reader, or if nothing is left.
    """
    for path in space.space:
        _check_path(path)
    unknown = [name for group in space.members for name in group if name not in own]
    if unknown:
        raise ExperimentError(f"members: no reader is called {unknown[0]!r}: there are {', '.join(own)}")
    groups = [tuple(group) for group in space.members] or [(name,) for name in own]
    points: dict[DecodePoint, None] = {}
    left_out, reason = 0, ""
    for group, values in product(groups, product(*space.space.values())):
        declared = overlay(own[group[0]].model_dump(mode="json"), space.base)
        for path, value in zip(space.space, values, strict=True):
            declared = _set(declared, path.split("."), value)
        for vote in space.ensemble_vote if len(group) > 1 else [None]:
            try:
                decode = DecodeSettings.model_validate(_without_influence_gone(declared))
            except ValidationError as error:
                left_out, reason = left_out + 1, str(error.errors()[0]["msg"])
                continue
            points[DecodePoint(members=group, decode=decode, ensemble_vote=vote)] = None
    if not points:
        raise ExperimentError(f"no combination of the space can be read with: {reason}")
    return list(points), left_out


def greedy_of(point: DecodePoint) -> DecodePoint:
    """What a point is compared with: its first member alone, greedy and without correction or votes of members."""
    bare = DecodeSettings(
        windows=point.decode.windows,
        window_frames=point.decode.window_frames,
        vote_floor=point.decode.vote_floor,
        length_priors=point.decode.length_priors,
    )
    return DecodePoint(members=point.members[:1], decode=bare)


def _without_influence_gone(declared: dict[str, Any]) -> dict[str, Any]:
    """Settings of searches that are not this one, as they are by default."""
    plain = DecodeSettings().model_dump(mode="json")
    search = declared.get("search", GREEDY)
    idle = {
        "beam": ("width", "length_penalty", "early_stop", "cloze_rescore"),
        "sample": ("temperature", "top_k", "top_p", "samples", "seed"),
    }
    reset = {key: plain[key] for kind, keys in idle.items() if kind != search for key in keys}
    if search == "beam" and declared.get("width") == 1:
        return {**declared, **reset, **{key: plain[key] for key in idle["beam"]}, "search": GREEDY}
    return {**declared, **reset}


def _told(key: str, value: Any) -> str:
    if key == "search":
        return str(value)
    if key == "correction":
        names = [name for name in ("lexicon", "language_model") if value.get(name)]
        return " and ".join(name.replace("_", " ") for name in names) + (
            f" ({value['lm_fusion']})" if value.get("language_model") else ""
        )
    return f"{key.replace('_', ' ')} {value}"


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
