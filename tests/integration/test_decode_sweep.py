"""Decode sweeps under a real Ray: what is encoded, what is read again, and what a killed one goes on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from glyphrun.bundle import load_engine
from glyphrun.data.batches import load_split
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate, read_split
from glyphrun.sweeps import encode
from glyphrun.sweeps.decode import decode_sweep
from glyphrun.sweeps.decode_settings import DecodeSpace, plan_points
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.readers import own_of, readers_of
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2}
BEAMS = {"search": ["greedy", "beam"], "width": [3, 5]}


@pytest.fixture(scope="module")
def encoded(local_ray: None) -> Iterator[Callable[[], int]]:
    """How many frames have been encoded since this was last asked; those who read points have no frames."""
    frames = 0
    original: Callable[..., Any] = Engine._encode

    def counting(self: Engine, pixels: Any, mask: Any, sizes: Any) -> Any:
        nonlocal frames
        frames += int(mask.sum())
        return original(self, pixels, mask, sizes)

    def since() -> int:
        nonlocal frames
        found, frames = frames, 0
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Engine, "_encode", counting)
        yield since


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return readers_of(
        [
            save_tiny_bundle(folder / "one", "parseq-nano", {**TINY, "fusion": "mean"}, seed=1),
            save_tiny_bundle(folder / "two", "parseq-nano", {**TINY, "fusion": "mean"}, seed=2),
        ]
    )


def points_of(readers: dict[str, Path], **space: Any) -> list[DecodePoint]:
    return plan_points(DecodeSpace.model_validate(space), *own_of(readers))[0]


def frames_of(dataset: Path, reader: Path) -> int:
    return int(load_split(dataset, "val", load_engine(reader).processor).counts().sum())


def texts_of(out: Path, row: dict[str, Any]) -> list[str]:
    """What a row read, out of the files of the sweep."""
    stored = [json.loads(file.read_text()) for file in (out / "rows").glob("*.json")]
    (found,) = [one for one in stored if one["point"] == row["point"]]
    return [text for text, _ in found["readings"]]


def times_of(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (out / "rows").iterdir()}


@dataclass
class Swept:
    """A sweep of beams by one reader, of votes by two, and of a word list."""

    out: Path
    points: list[DecodePoint]
    rows: dict[str, dict[str, Any]]
    told: list[tuple[int, int]]
    encoded: int
    words: Path


@pytest.fixture(scope="module")
def swept(encoded, readers, small_dataset, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    words = folder / "words.tsv"
    words.write_text("".join(f"{number}\t1\n" for number in range(1, 10)))
    points = [
        *points_of(readers, space=BEAMS, members=[["one"]]),
        *points_of(readers, members=[["one", "two"]], ensemble_vote=["majority", "average"]),
        *points_of(readers, space={"correction.lexicon": [str(words)]}, members=[["one"]]),
    ]
    told: list[tuple[int, int]] = []
    encoded()
    rows = decode_sweep(
        points, readers, small_dataset, "val", folder / "out", on_row=lambda done, total: told.append((done, total))
    )
    return Swept(folder / "out", points, {row["name"]: row for row in rows}, told, encoded(), words)


def test_every_reader_encodes_every_frame_once_and_every_point_is_told_of(swept, readers, small_dataset):
    assert swept.encoded == 2 * frames_of(small_dataset, readers["one"])
    assert swept.told == [(done, 6) for done in range(7)]
    assert sorted(swept.rows) == [
        "2 members, average, greedy",
        "2 members, majority, greedy",
        "one, beam, width 3",
        "one, beam, width 5",
        "one, corrected by words.tsv",
        "one, greedy",
    ]
    assert not (swept.out / "encodings").exists()


def test_rows_are_what_an_engine_reads_and_scores(swept, readers, small_dataset):
    alone = [row for row in swept.rows.values() if row["point"]["members"] == ["one"]]
    for row in alone:
        engine = load_engine(readers["one"]).with_settings(DecodePoint.model_validate(row["point"]).decode)
        arrays = load_split(small_dataset, "val", engine.processor)
        expected = evaluate(engine, arrays).to_json()
        same = ("n", "exact", "exact_ci", "cer", "cer_ci", "wer")
        assert {key: row[key] for key in same} == {key: expected[key] for key in same}
        assert texts_of(swept.out, row) == [item.text for item in read_split(engine, arrays)]
        assert row["frames_read"] == 1.0 and row["ms"] > 0 and row["images_per_s"] > 0
    assert len(alone) == 4 and len({tuple(texts_of(swept.out, row)) for row in alone}) > 2
    assert swept.rows["one, greedy"]["against_greedy"]["cer"]["difference"] == 0.0


def test_members_vote_for_what_one_of_them_reads(swept, readers, small_dataset):
    arrays = load_split(small_dataset, "val", load_engine(readers["one"]).processor)
    said = [[item.text for item in read_split(load_engine(folder), arrays)] for folder in readers.values()]
    for text, *each in zip(texts_of(swept.out, swept.rows["2 members, majority, greedy"]), *said, strict=True):
        assert text in each


def test_only_what_is_new_is_read_again(swept, encoded, readers, small_dataset, monkeypatch):
    """Out of files, which give the same and go when all is read, though one of the new settings cannot be read."""
    times, filed = times_of(swept.out), []
    encoded()
    again = decode_sweep(swept.points, readers, small_dataset, "val", swept.out)
    assert {row["name"]: row for row in again} == swept.rows and encoded() == 0

    def spying(batches: Any, folder: Path | None) -> Any:
        stored = store(batches, folder)
        filed.append(0 if folder is None else len(list(folder.glob("*.npy"))))
        return stored

    store = encode.store
    monkeypatch.setattr(encode, "store", spying)
    swept.words.write_text("12\t1\n")  # another list under the same name is another setting
    points = [*swept.points, *points_of(readers, space={"search": ["beam"], "width": [2]}, members=[["two"]])]
    absent = points_of(readers, base={"correction": {"lexicon": "absent.tsv"}}, members=[["one"]])
    with pytest.raises(ExperimentError, match=r"one, corrected by absent.tsv could not be read: .*absent.tsv"):
        decode_sweep([*absent, *points], readers, small_dataset, "val", swept.out, memory_mib=0)
    assert filed == [3, 3]  # of one batch tokens, frame_tokens and frame_mask
    assert not (swept.out / "encodings").exists()
    assert encoded() == 2 * frames_of(small_dataset, readers["one"])
    rows = decode_sweep(points, readers, small_dataset, "val", swept.out)
    assert encoded() == 0, "what could be read was"
    after = times_of(swept.out)
    assert {name: after[name] for name in times} == times and len(after) == len(times) + 3
    (narrow,) = [row for row in rows if row["name"] == "two, beam, width 2"]
    engine = load_engine(readers["two"]).with_settings(DecodePoint.model_validate(narrow["point"]).decode)
    arrays = load_split(small_dataset, "val", engine.processor)
    assert texts_of(swept.out, narrow) == [item.text for item in read_split(engine, arrays)]


def test_what_a_recognizer_cannot_follow_is_told_before_anything_is_encoded(encoded, small_dataset, tmp_path):
    lines = {"line": save_tiny_bundle(tmp_path / "line", "line-ctc-nano", {"width": 32, "depth": 1})}
    windows = points_of(lines, base={"windows": 2, "window_frames": 2})
    encoded()
    with pytest.raises(ExperimentError, match="reads every frame alone"):
        decode_sweep(windows, lines, small_dataset, "val", tmp_path / "out")
    assert encoded() == 0


KILLED = """
import os, signal, sys
from pathlib import Path
import ray
sys.path[:0] = [{here!r}, os.path.dirname({here!r})]
from test_decode_sweep import points_of
from glyphrun.sweeps.decode import decode_sweep
ray.init({address!r}, log_to_driver=False)
readers = {{"one": Path({reader!r})}}
points = points_of(readers, space={{"search": ["beam"], "width": list(range(2, 7))}})
decode_sweep(points, readers, Path({dataset!r}), "val", Path({out!r}), memory_mib=0,
             on_row=lambda done, total: done < 2 or os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_rows_it_has(encoded, readers, small_dataset, tmp_path):
    out = tmp_path / "out"
    script = KILLED.format(
        here=str(Path(__file__).parent),
        address=ray.get_runtime_context().gcs_address,
        reader=str(readers["one"]),
        dataset=str(small_dataset),
        out=str(out),
    )
    killed = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    times = times_of(out)
    assert 2 <= len(times) < 6
    points = points_of({"one": readers["one"]}, space={"search": ["beam"], "width": list(range(2, 7))})
    rows = decode_sweep(points, {"one": readers["one"]}, small_dataset, "val", out)
    assert len(rows) == 6
    after = times_of(out)
    assert {name: after[name] for name in times} == times
    assert not (out / "encodings").exists()
