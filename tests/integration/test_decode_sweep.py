"""Decode sweeps under a real Ray: what is encoded, what is read again, and what a killed one goes on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from glyphrun.bundle import load_engine
from glyphrun.data.batches import load_split
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate, read_split
from glyphrun.sweeps import decode
from glyphrun.sweeps.decode import decode_sweep, own_of, readers_of
from glyphrun.sweeps.decode_settings import DecodePoint, DecodeSpace, plan_points
from glyphrun.sweeps.experiment import ExperimentError
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2}
SPACE = {"search": ["greedy", "beam"], "width": [3, 5]}


def counter(path: str) -> Callable[[], None]:
    """What makes a process write down how many frames it encodes."""

    def count() -> None:  # not at the module's top, where the processes of trials could not import it
        encode: Callable[..., Any] = Engine._encode

        def counting(self: Engine, frames: Any, mask: Any, sizes: Any) -> Any:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{int(mask.sum())}\n")
            return encode(self, frames, mask, sizes)

        Engine._encode = counting

    return count


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], int]]:
    """How many frames have been encoded since this was last asked."""
    path = tmp_path_factory.mktemp("counted") / "frames"
    path.touch()
    original = Engine._encode
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        counter(str(path))()
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200_000_000,
            runtime_env={"worker_process_setup_hook": counter(str(path))},
        )

        def since() -> int:
            frames = sum(map(int, path.read_text().split()))
            path.write_text("")
            return frames

        yield since
        ray.shutdown()
    Engine._encode = original


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


def test_every_frame_is_encoded_once_and_rows_are_what_an_engine_reads(encoded, readers, small_dataset, tmp_path):
    points = points_of(readers, space=SPACE, members=[["one"]])
    told: list[tuple[int, int]] = []
    encoded()
    rows = decode_sweep(
        points, readers, small_dataset, "val", tmp_path, on_row=lambda done, total: told.append((done, total))
    )
    assert encoded() == frames_of(small_dataset, readers["one"])
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(row["name"] for row in rows) == ["one, beam, width 3", "one, beam, width 5", "one, greedy"]
    for row in rows:
        engine = load_engine(readers["one"]).with_settings(DecodePoint.model_validate(row["point"]).decode)
        arrays = load_split(small_dataset, "val", engine.processor)
        expected = evaluate(engine, arrays).to_json()
        assert {key: row[key] for key in ("n", "exact", "exact_ci", "cer", "cer_ci", "wer")} == {
            key: expected[key] for key in ("n", "exact", "exact_ci", "cer", "cer_ci", "wer")
        }
        assert texts_of(tmp_path, row) == [item.text for item in read_split(engine, arrays)]
        assert row["frames_read"] == 1.0 and row["ms"] > 0 and row["images_per_s"] > 0
    greedy = next(row for row in rows if row["name"] == "one, greedy")
    assert greedy["against_greedy"]["cer"]["difference"] == 0.0
    assert len({tuple(texts_of(tmp_path, row)) for row in rows}) > 1


def test_doing_it_again_reads_nothing_and_a_new_value_only_its_rows(encoded, readers, small_dataset, tmp_path):
    first = decode_sweep(points_of(readers, space=SPACE, members=[["one"]]), readers, small_dataset, "val", tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir()}
    encoded()
    again = decode_sweep(points_of(readers, space=SPACE, members=[["one"]]), readers, small_dataset, "val", tmp_path)
    assert again == first and encoded() == 0
    wider = points_of(readers, space={**SPACE, "width": [3, 5, 7]}, members=[["one"]])
    more = decode_sweep(wider, readers, small_dataset, "val", tmp_path)
    assert len(more) == 4 and encoded() == frames_of(small_dataset, readers["one"])
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir()}
    assert {name: after[name] for name in times} == times and len(after) == 4


def test_encodings_beyond_the_budget_lie_in_files_that_go_and_give_the_same(
    encoded, readers, small_dataset, tmp_path, monkeypatch
):
    seen: list[int] = []
    store = decode.store

    def spying(batches: Any, folder: Path | None) -> Any:
        stored = store(batches, folder)
        seen.append(0 if folder is None else len(list(folder.glob("*.npy"))))
        return stored

    monkeypatch.setattr(decode, "store", spying)
    points = points_of(readers, space=SPACE, members=[["one"]])
    held = decode_sweep(points, readers, small_dataset, "val", tmp_path / "held")
    filed = decode_sweep(points, readers, small_dataset, "val", tmp_path / "filed", memory_mib=0)
    assert seen[0] == 0 and seen[1] == 3  # tokens, frame_tokens and frame_mask of one batch
    assert not (tmp_path / "filed" / "encodings").exists()
    for row in held:
        other = next(one for one in filed if one["point"] == row["point"])
        assert texts_of(tmp_path / "held", row) == texts_of(tmp_path / "filed", other)


def test_members_are_encoded_once_each_and_vote_every_way(encoded, readers, small_dataset, tmp_path):
    points = points_of(readers, members=[["one"], ["one", "two"]], ensemble_vote=["majority", "mbr"])
    encoded()
    rows = decode_sweep(points, readers, small_dataset, "val", tmp_path)
    assert encoded() == 2 * frames_of(small_dataset, readers["one"])
    assert sorted(row["name"] for row in rows) == [
        "2 members, majority, greedy",
        "2 members, mbr, greedy",
        "one, greedy",
    ]
    said = {
        name: [item.text for item in read_split(engine, load_split(small_dataset, "val", engine.processor))]
        for name, engine in ((name, load_engine(folder)) for name, folder in readers.items())
    }
    together = texts_of(tmp_path, next(row for row in rows if "majority" in row["name"]))
    for text, *each in zip(together, said["one"], said["two"], strict=True):
        assert text in each


def test_correction_by_a_file_beside_the_settings_changes_what_is_read(encoded, readers, small_dataset, tmp_path):
    lexicon = tmp_path / "lexicon.tsv"
    lexicon.write_text("".join(f"{number}\t1\n" for number in range(1, 10)))
    points = points_of(readers, space={"correction.lexicon": [str(lexicon)]}, members=[["one"]])
    (row,) = [
        row for row in decode_sweep(points, readers, small_dataset, "val", tmp_path / "out") if "lexicon" in row["name"]
    ]
    engine = load_engine(readers["one"]).with_settings(DecodePoint.model_validate(row["point"]).decode)
    expected = [item.text for item in read_split(engine, load_split(small_dataset, "val", engine.processor))]
    assert texts_of(tmp_path / "out", row) == expected
    lexicon.write_text("12\t1\n")
    encoded()
    decode_sweep(points, readers, small_dataset, "val", tmp_path / "out")
    assert encoded() > 0, "another lexicon under the same name is another setting"


def test_early_exit_reads_a_share_of_the_frames(encoded, readers, small_dataset, tmp_path):
    windows = {"windows": 4, "window_frames": 1, "vote": "sum", "vote_floor": 0.0}
    points = points_of(readers, base=windows, space={"early_exit": [None, 0.05]}, members=[["one"]])
    rows = decode_sweep(points, readers, small_dataset, "val", tmp_path)
    whole, early = (
        next(row for row in rows if bool(row["point"]["decode"]["early_exit"]) is exits) for exits in (False, True)
    )
    assert 0 < early["frames_read"] < whole["frames_read"] <= 1
    engine = load_engine(readers["one"]).with_settings(DecodeSettings.model_validate({**windows, "early_exit": 0.05}))
    encoded()
    expected = [item.text for item in read_split(engine, load_split(small_dataset, "val", engine.processor))]
    assert texts_of(tmp_path, early) == expected
    assert encoded() == round(early["frames_read"] * frames_of(small_dataset, readers["one"]))


def test_a_limit_reads_items_drawn_by_the_seed(encoded, readers, small_dataset, tmp_path):
    points = points_of(readers, members=[["one"]])
    rows = {
        seed: decode_sweep(points, readers, small_dataset, "val", tmp_path, limit=8, seed=seed) for seed in (0, 0, 1)
    }
    assert [row["n"] for (row,) in rows.values()] == [8, 8]
    assert len(list((tmp_path / "rows").iterdir())) == 2


def test_what_a_recognizer_cannot_read_is_told_with_its_setting(encoded, readers, small_dataset, tmp_path):
    lines = {"line": save_tiny_bundle(tmp_path / "line", "line-ctc-nano", {"width": 32, "depth": 1})}
    points = points_of(lines, space={"search": ["greedy", "non-autoregressive"]})
    with pytest.raises(ExperimentError, match="line, non-autoregressive could not be read: .*has no refinement"):
        decode_sweep(points, lines, small_dataset, "val", tmp_path / "out")
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 1
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
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
readers = {{"one": Path({reader!r})}}
points = points_of(readers, space={{"search": ["beam"], "width": list(range(2, 12))}})
decode_sweep(points, readers, Path({dataset!r}), "val", Path({out!r}), memory_mib=0,
             on_row=lambda done, total: done < 2 or os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_rows_it_has(encoded, readers, small_dataset, tmp_path):
    out = tmp_path / "out"
    script = KILLED.format(
        here=str(Path(__file__).parent), reader=str(readers["one"]), dataset=str(small_dataset), out=str(out)
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    time.sleep(3)  # Ray's reaper ends the workers of a driver that was killed
    times = {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.json")}
    assert 2 <= len(times) < 11
    points = points_of({"one": readers["one"]}, space={"search": ["beam"], "width": list(range(2, 12))})
    rows = decode_sweep(points, {"one": readers["one"]}, small_dataset, "val", out)
    assert len(rows) == 11
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert not (out / "encodings").exists()
