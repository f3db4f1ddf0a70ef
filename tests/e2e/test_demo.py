"""The demo as a newcomer runs it, at small size: all five stages, again for nothing, and broken off in the middle."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from commands import ENVIRONMENT, GLYPHRUN, glyphrun, refusal, said
from glyphrun.data.sample import iterate_samples


def demo(folder: Path) -> list[str]:
    return [GLYPHRUN, "demo", "--smoke", "--run-dir", str(folder / "run"), "--registry", str(folder / "registry")]


def broken_off(folder: Path) -> None:
    """Run the demo until a trial has left a checkpoint, and press Ctrl-C."""
    process = subprocess.Popen(demo(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not list((folder / "run").glob("trials/*/checkpoint/state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in errors
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [child.cmdline() for child in alive]


def written(folder: Path) -> int:
    return (folder / "run/data/dataset.json").stat().st_mtime_ns


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a demo that was broken off and then left alone, what that printed, and when its data were made."""
    folder = tmp_path_factory.mktemp("demo")
    broken_off(folder)
    made = written(folder)
    done = subprocess.run(demo(folder), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, made


@pytest.mark.slow
def test_five_stages_end_in_an_answer_over_http(finished):
    folder, printed, _ = finished
    for stage in ("data", "sweep", "select", "report", "promote", "serve"):
        assert f"\n{stage}: " in f"\n{printed}"
    results = json.loads((folder / "run/results.json").read_text())
    assert len(results["trials"]) == 3
    assert 0 <= results["splits"]["test"]["exact"] <= 1
    assert results["splits"]["unseen"]["n"] == 40
    for split in ("val", "test", "unseen"):
        assert f"{results['splits'][split]['exact']:.3f}" in printed
    assert "POST /v1/recognize" in printed and "http://127.0.0.1:" in printed
    assert (folder / "run/report.html").stat().st_size < 6_000_000
    proposed = [line.split() for line in printed.splitlines() if line.startswith("  ") and "glyphrun " in line]
    assert [words[1] for words in proposed] == ["data", "evaluate", "serve"]


@pytest.mark.slow
def test_its_data_set_is_sound_and_its_model_answers_on_the_command_line(finished, tmp_path):
    folder, _, _ = finished
    assert "nothing wrong" in said("data", "check", str(folder / "run/data"))
    said("data", "show", str(folder / "run/data"), "--out", str(tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    registry = ["--registry", str(folder / "registry")]
    scores = json.loads(
        said("evaluate", "shirt-numbers-smoke", str(folder / "run/data"), "--split", "unseen", "--json", *registry)
    )
    assert {"n", "exact", "exact_ci", "cer", "wer", "ms_per_sample", "samples_per_s"} <= scores.keys()
    results = json.loads((folder / "run/results.json").read_text())
    assert scores["exact"] == results["splits"]["unseen"]["exact"]
    sample = next(iterate_samples(folder / "run/data", "test"))
    tracklet = tmp_path / "tracklet"
    tracklet.mkdir()
    for number, frame in enumerate(sample.frames):
        (tracklet / f"{number}.jpg").write_bytes(frame)
    read = glyphrun("recognize", str(tracklet), "--model", "shirt-numbers-smoke", "--json", *registry)
    answer = json.loads(read.stdout)
    assert len(answer["votes"]) == len(sample.frames)
    assert "shirt-numbers-smoke" in said("models", *registry)


@pytest.mark.slow
def test_broken_off_it_leaves_no_process_and_goes_on(finished):
    """That nothing is left is seen where it is broken off."""
    folder, printed, made = finished
    assert "data: done before" in printed and "sweep: done before" not in printed
    assert written(folder) == made


@pytest.mark.slow
def test_again_it_only_serves_and_promotes_no_second_version(finished):
    folder, _, _ = finished
    _, *arguments = demo(folder)
    assert "sweep: done before" in said(*arguments)
    assert [path.name for path in (folder / "registry/shirt-numbers-smoke").iterdir() if path.name.isdigit()] == ["1"]


def test_errors_are_one_sentence_and_exit_code_1(tmp_path):
    for arguments, told in (
        (["evaluate", "nobody", str(tmp_path), "--registry", str(tmp_path)], "neither a bundle's folder nor a model"),
        (["data", "check", str(tmp_path / "none")], "does not exist"),
        (["recognize", str(tmp_path), "--model", "nobody", "--registry", str(tmp_path)], "holds no images"),
        (["report", str(tmp_path)], "no results.json"),
    ):
        assert told in refusal(*arguments)
