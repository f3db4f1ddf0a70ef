"""A sweep from its declaration to results.json."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glyphrun.data.sample import dataset_hash
from glyphrun.progress import Stages
from glyphrun.sweeps.conclude import conclude
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.trials import write_json


@contextmanager
def claim_run(run_dir: Path, experiment: Experiment) -> Iterator[None]:
    """Make run_dir the folder of this experiment and keep other processes out of it.

    Raises ExperimentError if it holds a run of another experiment or another process works in it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExperimentError(
                f"another process works in {run_dir}: wait for it or name another --run-dir"
            ) from None
        _claim(run_dir, experiment)
        yield


def _claim(run_dir: Path, experiment: Experiment) -> None:
    declared = run_dir / "experiment.json"
    if declared.exists() and json.loads(declared.read_text(encoding="utf-8"))["hash"] != experiment.hash():
        raise ExperimentError(
            f"{run_dir} holds a run of another experiment: name another --run-dir or remove that folder"
        )
    if not declared.exists():
        write_json(declared, {"hash": experiment.hash(), "experiment": experiment.model_dump(mode="json")})


def sweep_to_results(experiment: Experiment, dataset: Path, run_dir: Path, stages: Stages) -> dict[str, Any]:
    """Run or continue the sweep, choose the winner and return the results. Needs a Ray that is running."""
    path = run_dir / "results.json"
    trials = plan_trials(experiment)
    _claim_dataset(run_dir, dataset)
    done = path.exists()
    with stages.stage("sweep", len(trials), skip=done) as stage:
        if not done:
            started = _first_start(run_dir)
            best: dict[str, float] = {}
            ended: set[str] = set()

            def show() -> None:
                leader = max(best, key=lambda trial: best[trial], default=None)
                so_far = f" · best exact match on val {best[leader]:.3f}, {leader}" if leader else ""
                stage.advance_to(len(ended), f"{len(ended)} of {len(trials)} trials ended{so_far}")

            def on_report(trial: str, result: dict[str, Any]) -> None:
                best[trial] = result["exact"]
                show()

            def on_end(trial: str, status: str) -> None:
                ended.add(trial)
                show()

            with _wall_time(run_dir) as seconds_before_and_now:
                records = run_sweep(experiment, dataset, run_dir, on_report, on_end)
            seconds = seconds_before_and_now()
    with stages.stage("select", 1, skip=done) as stage:
        if not done:
            conclude(
                experiment,
                dataset,
                run_dir,
                records,
                started=started,
                seconds=seconds,
                progress=lambda step: stage.advance_to(0, step),
            )
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stage.advance_to(1, results["selection"]["reason"])
    return results


def _claim_dataset(run_dir: Path, dataset: Path) -> None:
    claimed, found = run_dir / "dataset.json", dataset_hash(dataset)
    if not claimed.exists():
        write_json(claimed, {"hash": found, "path": str(dataset)})
    elif json.loads(claimed.read_text(encoding="utf-8"))["hash"] != found:
        raise ExperimentError(f"{run_dir} holds a run on other data than {dataset}: name another --run-dir")


def _first_start(run_dir: Path) -> datetime:
    path = run_dir / "started.json"
    if not path.exists():
        write_json(path, {"at": datetime.now(UTC).isoformat()})
    return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["at"])


@contextmanager
def _wall_time(run_dir: Path) -> Iterator[Callable[[], float]]:
    """Counts the seconds of this scope on top of those of earlier attempts, also when it is broken off."""
    path = run_dir / "wall_time.json"
    before: float = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0.0
    clock = time.monotonic()
    try:
        yield lambda: before + time.monotonic() - clock
    finally:
        write_json(path, {"seconds": before + time.monotonic() - clock})
