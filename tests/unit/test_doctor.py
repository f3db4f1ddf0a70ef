"""What a machine lacks is said with what to do, and only what stands in the way is wrong."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from glyphrun.cli.cluster import app
from glyphrun.doctor import (
    GIB,
    disk_finding,
    disk_space,
    driver_finding,
    machine_findings,
    memory_finding,
    packages_finding,
    shared_finding,
)

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def test_this_machine_has_what_is_needed(tmp_path):
    found = {one.what: one for one in machine_findings(tmp_path, GIB)}
    assert set(found) >= {"python", "packages", "gpu", "processors", "memory", "disk"}
    assert found["packages"].verdict == "ok"
    assert f"torch {version('torch')}" in found["packages"].found


def test_a_package_that_is_missing_or_too_old_is_named():
    installed = {name: version(name) for name in ("ray", "torch", "numpy")}
    finding = packages_finding({**installed, "torch": "2.3.0", "timm": None})
    assert finding.verdict == "wrong"
    assert "torch is 2.3.0, not >=2.11" in finding.advice
    assert "timm is missing" in finding.advice
    assert "numpy is" not in finding.advice


@pytest.mark.parametrize(
    ("supports", "cards", "built", "said"),
    [
        (13000, {"Tesla T4": (7, 5)}, BUILT, ""),
        (13020, {"RTX 6000 Ada": (8, 9)}, BUILT, ""),
        (12080, {"Tesla T4": (7, 5)}, BUILT, "install a newer driver"),
        (13020, {}, BUILT, "torch sees no GPU"),
        (13020, {"Tesla V100": (7, 0)}, BUILT, "no code for Tesla V100 (sm_70)"),
        (13020, {"Tesla T4": (7, 5)}, BUILT[1:], "no code for Tesla T4 (sm_75)"),
    ],
)
def test_a_driver_or_card_that_torch_cannot_use_is_wrong(supports, cards, built, said):
    finding = driver_finding("580.65", "13.2", supports, cards, built)
    assert finding.verdict == ("wrong" if said else "ok")
    assert said in finding.advice


def test_little_memory_and_disk_are_noted_and_a_full_disk_is_wrong(tmp_path):
    assert memory_finding(8 * GIB, 16 * GIB).verdict == "ok"
    assert memory_finding(GIB, 16 * GIB).verdict == "note"
    assert disk_finding(tmp_path, 50 * GIB, 100 * GIB).verdict == "ok"
    assert disk_finding(tmp_path, 4 * GIB, 10 * GIB).verdict == "note"
    full = disk_finding(tmp_path, 40 * GIB, 1000 * GIB)
    assert (full.verdict, "95 % full" in full.advice) == ("wrong", True)


def test_a_disk_is_measured_where_a_folder_will_be(tmp_path):
    free, total = disk_space(tmp_path / "not" / "yet" / "there")
    assert 0 <= free < total == disk_space(tmp_path)[1]


def test_shared_memory_of_a_bare_container_is_noted():
    assert "--shm-size" in shared_finding(64 << 20, GIB).advice
    assert shared_finding(2 * GIB, GIB).verdict == "ok"


def doctor(*arguments: str) -> tuple[int, list[dict[str, str]]]:
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, json.loads(done.stdout)["findings"]


def declare(folder: Path, **changes: object) -> str:
    file = folder / "experiment.yaml"
    candidate = {"family": "A", "recognizer": "parseq-nano"}
    file.write_text(yaml.safe_dump({"name": "tried", "trials": 4, "candidates": [candidate], **changes}))
    return str(file)


@pytest.fixture(autouse=True)
def no_cluster_and_a_roomy_disk(monkeypatch, tmp_path):
    """What is told of an experiment shows only where the machine that runs the tests has room itself."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("glyphrun.doctor.disk_space", lambda folder: (50 * GIB, 100 * GIB))
    monkeypatch.chdir(tmp_path)


def test_an_experiment_that_fits_is_given_its_number_of_trials_at_once(tmp_path):
    code, found = doctor(declare(tmp_path, resources={"gpus": 0}))
    assert code == 0
    assert any(one["found"].startswith("max_concurrent_trials ") for one in found)


def test_an_experiment_that_would_never_end_exits_with_1_and_says_why(tmp_path):
    code, found = doctor(declare(tmp_path), "--set", "resources.cpus=4096")
    assert code == 1
    (wrong,) = [one for one in found if one["verdict"] == "wrong"]
    assert "asks for 4096 CPU, and no node has more than" in wrong["advice"]


def test_nodes_of_a_cluster_file_count_and_its_mistakes_are_told(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "cluster.yaml").read_text()
    file = tmp_path / "cluster.yaml"
    file.write_text(text.replace("YOUR_", "given-").replace("n1-standard-8", "n1-standard-4"))
    wants = declare(tmp_path, resources={"cpus": 8, "accelerator_type": "T4"})
    code, found = doctor(wants, "--cluster", str(file))
    assert code == 1
    assert {one["what"] for one in found if one["verdict"] == "wrong"} == {"cluster file"}
    assert "max_concurrent_trials 4" in [one["found"] for one in found if one["what"] == "tried"]


def test_the_decoded_size_of_a_data_set_is_told(tmp_path, small_dataset):
    code, found = doctor(declare(tmp_path, resources={"gpus": 0}), "--dataset", str(small_dataset))
    assert code == 0
    assert any(one["what"] == "data" and "GiB decoded" in one["found"] for one in found)


def test_paths_that_would_be_gone_with_the_job_are_refused_before_anything_is_sent(tmp_path):
    file = declare(tmp_path)
    for arguments, said in [
        ([file, "--run-dir", "runs/x"], "--run-dir is runs/x"),
        ([file, "data", "--run-dir", "/x"], "the data set is data"),
        ([file, "--run-dir", "/x", "--working-dir", str(tmp_path / "other")], "put it there"),
    ]:
        done = CliRunner().invoke(app, ["submit", *arguments])
        assert done.exit_code == 1
        assert said in done.stderr
