"""A run that is kept in a bucket: what is there is whole at every moment, and an empty machine goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from glyphrun.mirror import CHECKPOINT, TRIALS, Mirror, MirrorError, fetch_run, hand_over, run_at, shown
from glyphrun.store import open_store

Machine = Callable[[str], None]


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> str:
    return bucket.format(f"{tmp_path.name}/shirts")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this another machine, of a name."""

    def become(name: str) -> None:
        monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path / name))

    become("first")
    return become


def unheard(said: str) -> None:
    raise AssertionError(said)


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


RUN = {
    "results.json": "{}",
    "report.html": "<p>",
    "bundle/SHA256SUMS": "sums",
    "trials/001/trial.json": "1",
    "trials/001/checkpoint/weights": "w",
    "trials/001/checkpoint/state": "s",
    "trials/001/snapshots/step-1/weights": "w",
}


def test_an_empty_machine_finds_the_run_and_goes_on_with_it(place, machine):
    with run_at(place, unheard) as (folder, (mirror,)):
        assert folder.name == "shirts"
        write(folder, {**RUN, "tune/attempt-1/x": "Ray's", ".lock": "", "trials/001/.checkpoint.part/weights": "half"})
        mirror.reported()
    store = open_store(place)
    assert store.read("results.json") == b"{}" and store.read("report.html") == b"<p>"
    machine("second")
    with pytest.raises(MirrorError, match="--resume goes on with it"), run_at(place, unheard):
        pass
    with run_at(place, unheard, resume=True) as (folder, (mirror,)):
        assert contents(folder) == RUN
        (folder / "trials/001/checkpoint/weights").write_text("newer")
        (folder / "report.html").unlink()
        mirror.ended()
    machine("third")
    assert contents(fetch_run(place, without=(TRIALS,))) == {"results.json": "{}", "bundle/SHA256SUMS": "sums"}
    assert not any("checkpoint" in path for path in contents(fetch_run(place, without=(CHECKPOINT,))))
    changed = {**RUN, "trials/001/checkpoint/weights": "newer"}
    del changed["report.html"]
    assert contents(fetch_run(place)) == changed
    assert len(store.names("files")) == len(set(changed.values()))  # what no file has any more is deleted
    written = folder / "report.html"
    written.write_text("again")
    assert hand_over(place, written) == f"{shown(place)}/report.html"
    assert store.read("report.html") == b"again" and "?" not in shown(place)


def test_a_machine_that_was_cut_off_goes_on_with_what_it_has_itself(place, machine):
    with run_at(place, unheard) as (folder, _):
        write(folder, RUN)
    write(folder, {"trials/001/checkpoint/weights": "not copied when the process was killed"})
    open_store(place).write("files/0123", b"of a copy that was broken off")
    with run_at(place, unheard) as (folder, _):
        assert contents(folder)["trials/001/checkpoint/weights"].startswith("not copied")
        assert fetch_run(place) == folder
    assert "0123" not in open_store(place).names("files")
    machine("second")
    assert contents(fetch_run(place))["trials/001/checkpoint/weights"].startswith("not copied")


def test_a_machine_whose_run_another_has_taken_over_says_so_and_changes_nothing(place, machine):
    heard: list[str] = []
    with (
        pytest.raises(MirrorError, match="gone on with by another machine"),
        run_at(place, heard.append) as (folder, (one,)),
    ):
        write(folder, RUN)
        one.push()
        machine("second")
        with run_at(place, unheard, resume=True) as (other, _):
            write(other, {"results.json": "of the second"})
        write(folder, {"results.json": "of the first"})
    assert open_store(place).read("results.json") == b"of the second"


def test_a_checkpoint_that_is_replaced_while_it_is_copied_is_whole(place, machine):
    over = Event()

    def train(folder: Path) -> None:
        """Each checkpoint has two files that belong together, and replaces the one before as a real one does."""
        step = 0
        while not over.is_set():
            step += 1
            part, previous = folder / ".checkpoint.part", folder / ".checkpoint.previous"
            write(part, {"weights": f"{step}", "state": f"{step}", "report": f"{step}"})
            if (folder / "checkpoint").exists():
                (folder / "checkpoint").rename(previous)
            part.rename(folder / "checkpoint")
            shutil.rmtree(previous, ignore_errors=True)

    with run_at(place, unheard) as (folder, (mirror,)):
        write(folder, {"trials/001/trial.json": "1"})
        thread = Thread(target=train, args=(folder / "trials/001",))
        thread.start()
        try:
            mirror.push()
            machine("second")
            seen = set()
            for _ in range(10):
                mirror.push()
                copied = contents(fetch_run(place))
                steps = {text for path, text in copied.items() if "checkpoint" in path}
                assert len(steps) == 1 and len(copied) == 4, copied
                seen |= steps
        finally:
            over.set()
            thread.join()
    assert len(seen) > 5


def test_a_checkpoint_whose_replacement_was_broken_off_is_copied(place, machine):
    with run_at(place, unheard) as (folder, _):
        write(folder, {"trials/001/.checkpoint.previous/state": "s"})
    machine("second")
    assert contents(fetch_run(place)) == {"trials/001/checkpoint/state": "s"}


def test_a_bucket_that_is_missing_is_told_while_the_run_goes_on_and_fails_it_in_the_end(bucket, machine):
    heard: list[str] = []
    told = Event()

    def tell(said: str) -> None:
        heard.append(said)
        told.set()

    place = bucket.replace("models", "missing").format("shirts")
    with (
        pytest.raises(MirrorError, match="cannot be copied to s3://missing/shirts"),
        run_at(place, tell) as (folder, (one,)),
    ):
        write(folder, RUN)
        one.started()
        assert told.wait(60)
    assert len(heard) == 1 and f"whole in {folder}" in heard[0] and contents(folder) == RUN


def test_a_folder_and_a_uri_of_one_are_worked_in_themselves(tmp_path):
    for named in (str(tmp_path), tmp_path.as_uri()):
        with run_at(named, unheard) as (folder, mirrors):
            assert folder == tmp_path and mirrors == []
        assert fetch_run(named) == tmp_path
        assert shown(named) == str(tmp_path)
        assert hand_over(named, tmp_path / "report.html") == str(tmp_path / "report.html")


def test_what_is_no_run_is_not_taken_for_one(place, machine):
    with pytest.raises(MirrorError, match=r"holds no run: it has no run\.json"):
        fetch_run(place)
    open_store(place).write("run.json", b"{")
    with pytest.raises(MirrorError, match="cannot be read"):
        Mirror(place).view(())
