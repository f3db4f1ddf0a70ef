"""The points of a decode sweep: who reads, how, and how several of them vote."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings, VoteMethod

GREEDY = "greedy"
FILES = ("lexicon", "confusions", "language_model")
UNTOLD = ("n_best", "calibration", "vote_floor", "length_priors", "seed")  # told only of points that need it

MemberVote = VoteMethod | Literal["average"]


class DecodePoint(BaseModel):
    """One setting of a decode sweep.

    decode: how the first member reads; others: how each further one does, empty where all read alike. ensemble_vote: how
    several members vote; «average» is one search over the mean of their log-probabilities, for which decode is all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[str, ...]
    decode: DecodeSettings
    others: tuple[DecodeSettings, ...] = ()
    ensemble_vote: MemberVote | None = None

    @classmethod
    def of(cls, ways: Mapping[str, DecodeSettings], vote: MemberVote | None = None) -> DecodePoint:
        """ways: how each member reads."""
        first, *others = ways.values()
        alike = vote == "average" or all(other == first for other in others)
        return cls(members=tuple(ways), decode=first, others=() if alike else tuple(others), ensemble_vote=vote)

    @property
    def ways(self) -> dict[str, DecodeSettings]:
        """How each member reads."""
        others = self.others or (self.decode,) * (len(self.members) - 1)
        return dict(zip(self.members, (self.decode, *others), strict=True))

    @property
    def name(self) -> str:
        """The point in words: who reads, and how the first of them differs from a bare greedy reading."""
        who = f"{len(self.members)} members, {self.ensemble_vote}" if self.ensemble_vote else self.members[0]
        return f"{who}, {_described(self.decode)}"

    def key(self, readers: Mapping[str, str], data: str) -> str:
        """A hash of all that its result depends on; readers: a hash of each member's files, data: of the items."""
        declared = {
            "ways": [
                {"files": _hashes_of_files(way.correction), "decode": way.model_dump(mode="json")}
                for way in self.ways.values()
            ],
            "members": [readers[member] for member in self.members],
            "vote": self.ensemble_vote,
            "data": data,
        }
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:20]


def distinct(points: Sequence[DecodePoint]) -> list[DecodePoint]:
    """Points that are equal but once, in their order."""
    return list({point.model_dump_json(): point for point in points}.values())


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
        if any(other.others != point.others for other in alike):
            told += [f"{member}: {_described(way)}" for member, way in list(point.ways.items())[1:]]
        names.append(", ".join([point.name, *told]))
    return names


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


def families_of(points: Mapping[str, DecodePoint]) -> list[list[str]]:
    """The keys of points in groups that one process reads, those that take longest first.

    Beams that differ in width alone are one family, the widest first, since they can be read out of it; every other
    point is a family of its own.
    """
    families: dict[str, list[str]] = {}
    for key, point in points.items():
        families.setdefault(_but_width(point), []).append(key)
    for family in families.values():
        family.sort(key=lambda key: -points[key].decode.width)
    return sorted(families.values(), key=lambda family: -sum(_cost(points[key]) for key in family))


def _but_width(point: DecodePoint) -> str:
    ways = [
        way.model_copy(update={"width": 1}) if way.search == "beam" and not way.early_exit else way
        for way in point.ways.values()
    ]
    return json.dumps([point.members, point.ensemble_vote, [way.model_dump(mode="json") for way in ways]])


def _cost(point: DecodePoint) -> int:
    """About how many hypotheses a step of its searches has."""
    return sum(way.width if way.search == "beam" else way.samples for way in point.ways.values())


def _described(decode: DecodeSettings) -> str:
    plain = DecodeSettings().model_dump(exclude={*UNTOLD, "abstain_below"})
    own = decode.model_dump(mode="json", exclude_none=True)
    told = [_told(key, own[key]) for key, value in plain.items() if key in own and own[key] != value]
    return ", ".join(told or [GREEDY])


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


def _hashes_of_files(correction: CorrectionSettings | None) -> dict[str, str]:
    """Of the files that correction names by absolute paths; those in a bundle are known by the bundle's hashes."""
    named = {name: getattr(correction, name) for name in FILES} if correction else {}
    paths = {name: Path(value) for name, value in named.items() if value and Path(value).is_absolute()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}
