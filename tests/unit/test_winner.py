"""What wins is served as it was read: alone or as an ensemble, with the settings of its point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from committee import tracklets
from glyphrun.bundle import MEMBERS, parse_manifest
from glyphrun.decoding.settings import Calibration, DecodeSettings
from glyphrun.ensemble_bundle import load_reader
from glyphrun.evaluation.cost import Latency
from glyphrun.sweeps.point_costs import PointCost, measure_points
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.readers import own_of
from glyphrun.sweeps.ways import Way, Ways
from glyphrun.sweeps.winner import Winner, winning_way
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2, "fusion": "mean"}
BEAM = {"search": "beam", "width": 3}
COST = PointCost(Latency(1.0, 1.0), 1.0)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("readers")
    (folder / "words.tsv").write_text("7\t5\n42\t3\n")
    corrected = {"correction": {"lexicon": str(folder / "words.tsv")}}
    return {
        "001-parseq": save_tiny_bundle(folder / "001-parseq", "parseq-nano", TINY, seed=1, **corrected),
        "002-parseq": save_tiny_bundle(folder / "002-parseq", "parseq-nano", TINY, seed=2),
    }


def winner(readers: dict[str, Path], ways: dict[str, Any], vote: Any = None) -> Winner:
    point = DecodePoint.of({name: DecodeSettings.model_validate(how) for name, how in ways.items()}, vote)
    way = Way(point, {"name": point.name}, COST)
    return winning_way(way, Ways(list(readers), readers, [way], 0))


def same_readings(winner: Winner, bundle: Path) -> None:
    items = tracklets()
    served, searched = load_reader(bundle).read(items), winner.reader.read(items)
    assert [one.text for one in served] == [one.text for one in searched]
    assert [one.confidence for one in served] == pytest.approx([one.confidence for one in searched], rel=1e-6)
    assert len({one.text for one in served}) > 1


@pytest.mark.parametrize("vote", ["majority", "mbr", "average"])
def test_an_ensemble_is_kept_with_the_settings_that_each_member_read_by(readers, tmp_path, vote):
    other = {"search": "beam", "width": 2} if vote != "average" else BEAM
    won = winner(readers, {"001-parseq": BEAM, "002-parseq": other}, vote)
    won.save(tmp_path / "bundle", "joint", won.decode, {}, {"experiment": "e", "trial": "both"})
    manifest = parse_manifest(tmp_path / "bundle")
    assert manifest.ensemble is not None and manifest.ensemble.vote == vote
    assert won.trials == list(manifest.recognizer["members"]) == list(readers)
    members = {name: parse_manifest(tmp_path / "bundle" / MEMBERS / name) for name in readers}
    assert [members[name].decode.width for name in readers] == [3, 3 if vote == "average" else 2]
    assert members["002-parseq"].provenance == {"experiment": "e", "trial": "002-parseq"}
    assert manifest.provenance["trial"] == "both"
    same_readings(won, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_one_recognizer_is_kept_with_its_point_and_without_files_that_it_does_not_need(readers, tmp_path):
    own = own_of(readers).own["001-parseq"]
    for name, decode, lists in (("corrected", own, True), ("beam", DecodeSettings.model_validate(BEAM), False)):
        won = winner(readers, {"001-parseq": decode.model_dump()})
        settled = won.decode.model_copy(update={"calibration": Calibration(temperature=2.0)})
        won.save(tmp_path / name, "joint", settled, {}, {"trial": "001-parseq"})
        kept = parse_manifest(tmp_path / name)
        assert (kept.name, kept.decode.calibration.temperature) == ("joint", 2.0)
        assert (tmp_path / name / "words.tsv").exists() is lists
        assert (kept.decode.correction is not None) is lists
        same_texts = [one.text for one in load_reader(tmp_path / name).read(tracklets())]
        assert same_texts == [one.text for one in won.reader.read(tracklets())]


def test_costs_are_measured_once_for_a_point_and_an_ensemble_weighs_as_much_as_its_members(readers, tmp_path):
    points = [
        DecodePoint.of({name: DecodeSettings() for name in members}, "majority" if len(members) > 1 else None)
        for members in (["001-parseq"], ["002-parseq"], list(readers))
    ]
    told: list[int] = []

    def measure(where: str) -> list[PointCost]:
        return measure_points(points, readers, tracklets()[:2], tmp_path, threads=1, where=where, told=told.append)

    first = measure("here")
    one, two, both = (cost.memory_mib for cost in first)
    weights = 4 * sum(2 * (readers[name] / "weights.safetensors").stat().st_size // 8 for name in readers) / 2**20
    assert both > 0.9 * weights and both > 1.5 * max(one, two)
    assert both < one + two
    assert told[0] == 0 and told[-1] == 3
    told.clear()
    assert measure("here") == first and told == [3]
    assert measure("elsewhere") != first and told[1] == 0
