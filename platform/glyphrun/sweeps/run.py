"""A sweep from its declaration to results.json."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glyphrun.data.sample import dataset_hash
from glyphrun.progress import Stages
from glyphrun.run_folder import only_process
from glyphrun.sweeps.conclude import conclude
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.joint import search_ways
from glyphrun.sweeps.live import LiveTable
from glyphrun.sweeps.plan import plan_trials, trial_count
from glyphrun.sweeps.preview import ways_of_reading
from glyphrun.sweeps.tracking import TensorBoard
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.trained import Trained, measure_trials
from glyphrun.sweeps.trials import write_json
from glyphrun.sweeps.watch import Listener
from glyphrun.sweeps.ways import Ways


@contextmanager
def claim_run(run_dir: Path, experiment: Experiment) -> Iterator[None]:
    """Make run_dir the folder of this experiment and keep other processes out of it.

    Raises ExperimentError if it holds a run of another experiment, BlockingIOError if another process works in it.
    """
    with only_process(run_dir):
        _claim(run_dir, experiment)
        yield


def _claim(run_dir: Path, experiment: Experiment) -> None:
    declared = run_dir / "experiment.json"
    same = declared.exists() and json.loads(declared.read_text(encoding="utf-8"))["hash"] == experiment.hash()
    if declared.exists() and not same and _has_begun(run_dir):
        raise ExperimentError(
            f"{run_dir} holds a run of another experiment: name another --run-dir or remove that folder"
        )
    if not same:
        if not _has_begun(run_dir):
            shutil.rmtree(run_dir / "trials", ignore_errors=True)  # as they were planned by what was refused
        write_json(declared, {"hash": experiment.hash(), "experiment": experiment.model_dump(mode="json")})


def _has_begun(run_dir: Path) -> bool:
    """Whether any trial left more than its plan: what was refused before that claims nothing, so that it can be mended."""
    left = (path.name for path in (run_dir / "trials").glob("*/*"))
    return any(name != "trial.json" for name in left) or (run_dir / "results.json").exists()


def sweep_to_results(
    experiment: Experiment,
    dataset: Path,
    run_dir: Path,
    stages: Stages,
    *,
    extend: int = 0,
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Run or continue the sweep, choose the winner among trials or ways of reading them, and return the results.

    Needs a Ray that is running. extend: trials to add to a run that has finished; the same once more goes on with them.
    Raises ExperimentError if it has not.
    """
    path = run_dir / "results.json"
    _claim_dataset(run_dir, dataset)
    extended = _extended(run_dir, experiment, extend)
    planned = plan_trials(experiment, extended)
    total = trial_count(experiment, extended)
    done = path.exists() and _covers(path, experiment, extended)
    with stages.stage("sweep", total, skip=done) as stage:
        if not done:
            started = _first_start(run_dir)
            steps = sum(trial.train.steps for trial in planned) * total // len(planned)
            everyone: list[Listener] = [LiveTable(experiment, stage, total, steps), TensorBoard(run_dir), *listeners]
            with _wall_time(run_dir) as seconds_before_and_now:
                records = run_sweep(
                    experiment, dataset, run_dir, everyone, extended=extended, clock=seconds_before_and_now
                )
            seconds = seconds_before_and_now()
    trained: Trained | None = None
    ways: Ways | None = None
    if experiment.decode_search is not None:
        _, most = ways_of_reading(experiment)
        with stages.stage("decode", most, skip=done) as stage:
            if not done:
                trained = measure_trials(experiment, dataset, records, lambda step: stage.advance_to(0, step))
                ways = search_ways(experiment, dataset, run_dir, trained, stage.advance_to)
    with stages.stage("select", 1, skip=done) as stage:
        if not done:
            if trained is None:
                trained = measure_trials(experiment, dataset, records, lambda step: stage.advance_to(0, step))
            conclude(
                experiment,
                dataset,
                run_dir,
                trained,
                ways,
                started=started,
                seconds=seconds,
                extended=extended,
                progress=lambda step: stage.advance_to(0, step),
            )
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stage.advance_to(1, results["selection"]["reason"])
    return results


def holds_a_run(run_dir: Path) -> bool:
    """Whether something was begun in a folder that can be resumed."""
    return (run_dir / "experiment.json").exists()


def read_extended(run_dir: Path) -> list[int]:
    """How many trials were added to a run each time."""
    path = run_dir / "extended.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["trials"]) if path.exists() else []


def _extended(run_dir: Path, experiment: Experiment, extend: int) -> list[int]:
    """All extensions with the one that is asked for, which is recorded unless it is the one that is not finished."""
    extended = read_extended(run_dir)
    path = run_dir / "results.json"
    if not extend:
        return extended
    finished = path.exists() and _covers(path, experiment, extended)
    if finished:
        extended = [*extended, extend]
        plan_trials(experiment, extended)  # raises if there is nothing to add
        write_json(run_dir / "extended.json", {"trials": extended})
    elif not extended or extended[-1] != extend:
        asked = f"the {extended[-1]} trials added before are not finished" if extended else "the sweep has not finished"
        raise ExperimentError(f"{asked} in {run_dir}: run it without --extend first, or with the same number")
    return extended


def _covers(path: Path, experiment: Experiment, extended: list[int]) -> bool:
    """Whether results are those of all trials, and were not cut short by a budget that is another now."""
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["run"]
    limits = {"hours": experiment.budget.hours, "steps": experiment.budget.steps}
    return bool(run["extended"] == extended and (not run["spent"] or run["limits"] == limits))


def _claim_dataset(run_dir: Path, dataset: Path) -> None:
    claimed, found = run_dir / "dataset.json", dataset_hash(dataset)
    if not claimed.exists() or not _has_begun(run_dir):
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
