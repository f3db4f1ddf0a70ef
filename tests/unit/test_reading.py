"""Points read out of encodings, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glyphrun.bundle import load_engine
from glyphrun.data.batches import FrameArrays, load_split
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.ensemble import Ensemble
from glyphrun.evaluation.evaluate import evaluate, read_split
from glyphrun.members import EnsembleSettings
from glyphrun.sweeps import reading
from glyphrun.sweeps.encodings import Encoding, store
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.reading import PointReader
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2, "fusion": "mean"}
BATCH = 2  # items


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "one": save_tiny_bundle(folder / "one", "parseq-nano", TINY, seed=1),
        "two": save_tiny_bundle(folder / "two", "parseq-nano", TINY, seed=2),
    }


@pytest.fixture(scope="module")
def arrays(readers: dict[str, Path], small_dataset: Path) -> FrameArrays:
    return load_split(small_dataset, "val", load_engine(readers["one"]).processor)


@pytest.fixture(scope="module")
def point_reader(readers: dict[str, Path], arrays: FrameArrays) -> PointReader:
    def fetch(name: str) -> Encoding:
        engine, batches = load_engine(readers[name]), []
        for start in range(0, len(arrays), BATCH):
            numbers = list(range(start, min(start + BATCH, len(arrays))))
            for places, encoded in engine.encode([arrays.item(number) for number in numbers]):
                batches.append(([numbers[place] for place in places], encoded))
        return Encoding(store(batches, None), 1.0, int(arrays.counts().sum()))

    return PointReader(readers, fetch, arrays.texts)


@pytest.fixture(scope="module")
def alone(readers: dict[str, Path], arrays: FrameArrays) -> Callable[..., list[str]]:
    """What a bundle reads without encodings."""

    def texts(name: str, **settings: Any) -> list[str]:
        engine = load_engine(readers[name]).with_settings(DecodeSettings.model_validate(settings))
        return [prediction.text for prediction in read_split(engine, arrays)]

    return texts


def point(*members: str, vote: Any = None, **settings: Any) -> DecodePoint:
    return DecodePoint(members=members, decode=DecodeSettings.model_validate(settings), ensemble_vote=vote)


def texts_of(row: dict[str, Any]) -> list[str]:
    return [text for text, _ in row["readings"]]


def test_widths_are_read_out_of_the_widest_as_alone_and_timed_on_a_sample(point_reader, alone):
    beams = [point("one", search="beam", width=width) for width in (7, 5, 3)]
    rows = list(point_reader.rows(beams))
    for beam, row in zip(beams, rows, strict=True):
        assert row["name"] == beam.name
        assert texts_of(row) == alone("one", search="beam", width=beam.decode.width)
        assert row["timed_items"] == BATCH * len(range(2, 10, reading.TIMED)) and row["ms"] > 1e3 / 20
    assert len({tuple(texts_of(row)) for row in rows}) == 3
    assert rows[0]["searched_anew"] == 0
    (single,) = point_reader.rows(beams[:1])
    assert texts_of(single) == texts_of(rows[0]) and single["timed_items"] == 20


def test_windows_that_vote_are_read_out_of_the_widest_too(point_reader, alone):
    windows = {"search": "beam", "windows": 3, "window_frames": 2, "vote": "mbr"}
    for row in point_reader.rows([point("one", **windows, width=width) for width in (5, 2)]):
        assert texts_of(row) == alone("one", **windows, width=row["point"]["decode"]["width"])
        assert 0.3 < row["frames_read"] < 1


def test_scores_are_those_of_an_evaluation(point_reader, readers, arrays):
    (row,) = point_reader.rows([point("one")])
    expected = evaluate(load_engine(readers["one"]), arrays).to_json()
    same = ("n", "exact", "exact_ci", "cer", "cer_ci", "wer", "wer_ci")
    assert {key: row[key] for key in same} == {key: expected[key] for key in same}


def test_early_exit_is_charged_with_the_frames_that_it_reads(point_reader, alone):
    windows = {"windows": 4, "window_frames": 1, "vote_floor": 0.0}
    whole, early = (next(point_reader.rows([point("one", **windows, early_exit=exit)])) for exit in (None, 0.05))
    assert texts_of(early) == alone("one", **windows, early_exit=0.05)
    assert 0 < early["frames_read"] < whole["frames_read"] < 1
    assert early["ms"] < 1e3 * (early["frames_read"] + 1) / 20


def test_members_are_averaged_as_an_ensemble_averages_them(point_reader, readers, arrays):
    for settings in ({}, {"search": "beam", "width": 3}):
        average = point("one", "two", vote="average", **settings)
        (row,) = point_reader.rows([average])
        engines = {name: load_engine(folder) for name, folder in readers.items()}
        ensemble = Ensemble(engines, EnsembleSettings(vote="average"), average.decode)
        assert texts_of(row) == [prediction.text for prediction in read_split(ensemble, arrays)]
    assert texts_of(row) != texts_of(next(point_reader.rows([point("one", search="beam", width=3)])))


def test_each_member_votes_with_settings_of_its_own(point_reader, readers, arrays):
    ways = {"one": DecodeSettings(calibration={"temperature": 4.0}), "two": DecodeSettings()}
    (row,) = point_reader.rows([DecodePoint.of(ways, "confidence")])
    said = [read_split(load_engine(readers[name]).with_settings(way), arrays) for name, way in ways.items()]
    surest = [max(pair, key=lambda prediction: prediction.confidence).text for pair in zip(*said, strict=True)]
    assert texts_of(row) == surest
    (alike,) = point_reader.rows([DecodePoint.of(dict.fromkeys(ways, DecodeSettings()), "confidence")])
    assert texts_of(alike) != surest
