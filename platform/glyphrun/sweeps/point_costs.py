"""What a way of reading takes: latency of an item alone, and memory, measured once for each point and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from glyphrun.bundle import load_engine
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.evaluation.cost import Latency, measure_latency
from glyphrun.evaluation.footprint import memory_mib
from glyphrun.members import EnsembleSettings
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.readers import digests_of
from glyphrun.sweeps.trials import write_json

REPEATS = 16


@dataclass(frozen=True)
class PointCost:
    """Latency of an item alone, from encoded frames to text, and MiB of the weights and of what reading adds."""

    latency: Latency
    memory_mib: float

    def to_json(self) -> dict[str, Any]:
        return {"latency_ms": asdict(self.latency), "memory_mib": self.memory_mib}


def measure_points(
    points: Sequence[DecodePoint],
    readers: Mapping[str, Path],
    items: Sequence[Sequence[bytes]],
    kept: Path,
    *,
    threads: int,
    where: str,
    told: Callable[[int], None] = lambda _: None,
) -> list[PointCost]:
    """The cost of each point over items of encoded frames; points of the same members are measured in turn.

    kept: the folder where costs are, and are found again; where: the machine and the items, in words that change with them.
    told is how many points are done.
    """
    kept.mkdir(parents=True, exist_ok=True)
    digests = digests_of(readers)
    places = [kept / f"{point.key(digests, f'{where}/{threads}')}.json" for point in points]
    missing = [number for number, place in enumerate(places) if not place.exists()]
    done = len(points) - len(missing)
    told(done)
    engines: dict[str, Engine] = {}
    for members, group in groupby(
        sorted(missing, key=lambda number: points[number].members), lambda n: points[n].members
    ):
        numbers = list(group)
        engines |= {name: load_engine(readers[name]) for name in members if name not in engines}
        ways = [reader_of(points[number], engines) for number in numbers]
        latencies = measure_latency(ways, items, repeats=REPEATS, threads=threads)
        for number, way, latency in zip(numbers, ways, latencies, strict=True):
            write_json(places[number], PointCost(latency, memory_mib(way, items[0])).to_json())
        done += len(numbers)
        told(done)
    return [_read(place) for place in places]


def reader_of(point: DecodePoint, engines: Mapping[str, Engine]) -> Engine | Ensemble:
    """What reads as a point says, of its members' engines."""
    members = {name: engines[name].with_settings(way) for name, way in point.ways.items()}
    if point.ensemble_vote is None:
        return members[point.members[0]]
    return Ensemble(members, EnsembleSettings(vote=point.ensemble_vote), after_vote(point))


def after_vote(point: DecodePoint) -> DecodeSettings:
    """What follows once the members are heard: nothing where they vote; an average searches and does all the rest."""
    # Members have their own floors for what they see; of what they say nothing is ignored.
    return point.decode if point.ensemble_vote in (None, "average") else DecodeSettings(vote_floor=0.0)


def _read(place: Path) -> PointCost:
    known = json.loads(place.read_text(encoding="utf-8"))
    return PointCost(Latency(**known["latency_ms"]), known["memory_mib"])
