"""A sweep as a job on a cluster that grows: the upload is what runs, T4 nodes come from zero and go again.

One head serves the whole file; its nodes are processes of this machine, started by Ray's own autoscaler.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient
from typer.testing import CliRunner

from glyphrun.cli import app
from glyphrun.jobs import connect, follow
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.trials import read_outcome, read_reports, trial_folder
from local_cluster import BIN, Head, local_cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {
    "recognizer": "query-digits-nano",
    "changes": {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2},
}
EVERY = 20  # steps
HALF = 10  # of the long trial's reports
EXPERIMENT = {
    "name": "on-a-cluster",
    "trials": 2,
    "candidates": [{"family": "short", **DIGITS, "train": {"steps": EVERY}}, {"family": "long", **DIGITS}],
    "train": {
        "steps": 2 * HALF * EVERY,
        "batch_size": 4,
        "evaluate_every": EVERY,
        "checkpoint_every": EVERY,
        "warmup": 1,
    },
    "scheduler": {"kind": "none"},
    "resources": {"cpus": 1, "gpus": 1, "accelerator_type": "T4"},
    "budget": {"latency_ms": 10000, "frames": 2},
}
MARK = """
import platform
from pathlib import Path
known = platform.python_implementation(), Path("platform/glyphrun").is_dir(), Path("runs").exists()
print("{name}:", *known, flush=True)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with local_cluster(t4_nodes=2) as started:
        yield started


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What is uploaded: this repository's code with a mark of its own, an experiment that asks for T4, and runs that stay."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("platform", "serve"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("runtime-env.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    with (folder / "platform/glyphrun/sweeps/run.py").open("a") as code:
        code.write(MARK.format(name=folder.name))
    for name in ("experiments", "runs"):
        (folder / name).mkdir()
    (folder / "runs/large").write_bytes(bytes(100))
    (folder / "experiments/t4.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder


@pytest.fixture
def client(head, monkeypatch) -> JobSubmissionClient:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", head.environment["RAY_AUTH_TOKEN_PATH"])
    return connect(head.dashboard)


def submission(address: str, checkout: Path, dataset: Path, run: Path) -> list[str]:
    return ["submit", str(checkout / "experiments/t4.yaml"), str(dataset), "--run-dir", str(run), "--address", address]


def submit(head: Head, checkout: Path, dataset: Path, run: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A submission in a process of its own, and the job that it has started."""
    process = subprocess.Popen(
        [BIN / "glyphrun", *submission(head.dashboard, checkout, dataset, run), *options],
        cwd=checkout,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    return process, next(line for line in process.stderr if line.startswith("job ")).split()[1].rstrip(":")


@pytest.fixture(scope="module")
def swept(head, checkout, small_dataset, tmp_path_factory) -> tuple[Path, str, list[int], dict[Path, list]]:
    """By Ray's own command, on nodes that are all taken back once: the run, what the job said, how many T4 nodes there were
    over time, and what the trials had reported when they were gone."""
    run, log = tmp_path_factory.mktemp("cluster") / "run", tmp_path_factory.mktemp("log") / "log"
    sweep = ["glyphrun", "sweep", "experiments/t4.yaml", str(small_dataset), "--run-dir", str(run)]
    upload = ["--working-dir", ".", "--runtime-env", "runtime-env.yaml", "--address", head.dashboard]
    short, long = (trial_folder(run, trial) for trial in plan_trials(Experiment.model_validate(EXPERIMENT)))
    nodes, known = [head.t4_nodes()], {}
    with log.open("w") as said:
        job = subprocess.Popen(
            [BIN / "ray", "job", "submit", *upload, "--", *sweep],
            cwd=checkout,
            env={**head.environment, "RAY_AUTH_MODE": "token"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 300
    while job.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        nodes.append(head.t4_nodes())
        with suppress(FileNotFoundError):  # a checkpoint was replaced while it was read
            reports = {folder: read_reports(folder) for folder in (short, long)}
            if not known and reports[long] and (read_outcome(short) or len(reports[long]) > HALF):
                known = reports
                assert head.take_back()
        time.sleep(0.2)
    assert job.returncode == 0, log.read_text()
    while nodes[-1]:
        assert time.monotonic() < deadline, nodes
        nodes.append(head.t4_nodes())
        time.sleep(0.2)
    return run, log.read_text(), nodes, known


def test_a_job_of_ray_runs_the_code_that_was_uploaded_without_the_runs(swept, checkout):
    """Though its folder platform/ lies on the path of every process, the standard library's module is found."""
    _, said, _, _ = swept
    assert f"{checkout.name}: CPython True False" in said


def test_t4_nodes_come_from_zero_and_go_when_the_sweep_is_over(swept):
    _, _, nodes, _ = swept
    assert nodes[0] == nodes[-1] == 0 and max(nodes) == 2


def test_a_node_that_is_taken_back_costs_no_report_and_no_trial(swept):
    """Seconds of training are part of a report, so that one of steps that were done again would differ."""
    run, _, _, known = swept
    short, long = known.values()
    assert len(short) <= 1 and 0 < len(long) < 2 * HALF
    for trial, reports in known.items():
        assert read_reports(trial)[: len(reports)] == reports
    trials = json.loads((run / "results.json").read_text())["trials"]
    assert [(trial["status"], len(trial["curve"])) for trial in trials] == [("finished", 1), ("finished", 2 * HALF)]


def test_submit_has_the_exit_code_of_a_job_that_fails_and_what_it_said(client, checkout, small_dataset, tmp_path):
    arguments = submission(client.get_address(), checkout, small_dataset, tmp_path / "absent")
    done = CliRunner().invoke(app, [*arguments, "--resume", "--working-dir", str(checkout)])
    assert (done.exit_code, "holds no run to go on with" in done.stdout) == (1, True), done.output


def test_ctrl_c_leaves_the_job_running_which_can_be_followed_to_its_end(swept, head, client, checkout, small_dataset):
    run, _, _, _ = swept
    process, job = submit(head, checkout, small_dataset, run, "--resume")
    until(client, job, JobStatus.RUNNING)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, f"ray job stop {job}" in err) == (130, True), err
    said: list[str] = []
    assert follow(client, job, said.append) == 0
    assert str(run / "report.html") in "".join(said)


def test_ctrl_c_stops_the_job_where_it_is_told_to(head, client, checkout, small_dataset, tmp_path):
    """After the first line that it has shown of the job, whose sweep has more steps than anybody waits for."""
    endless = ("--set", "train.steps=10000000", "--set", "candidates.0.train.steps=10000000")
    process, job = submit(head, checkout, small_dataset, tmp_path / "run", *endless, "--stop-on-interrupt")
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith(checkout.name))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, f"job {job} is stopped" in err) == (130, True), err
    assert until(client, job, JobStatus.STOPPED) == "STOPPED"


def until(client: JobSubmissionClient, job: str, status: JobStatus) -> str:
    """What a job has come to when it has this status, or at last."""
    deadline = time.monotonic() + 120
    while (now := client.get_job_status(job)) != status and not now.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.2)
    return str(now.value)
