"""A sweep from its declaration to results.json."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glyphrun.progress import Stages
from glyphrun.sweeps.conclude import conclude
from glyphrun.sweeps.experiment import Experiment, ExperimentError, plan_trials
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.trials import write_json


def claim_run(run_dir: Path, experiment: Experiment) -> None:
    """Make run_dir the folder of this experiment. Raises ExperimentError if it holds a run of another."""
    declared = run_dir / "experiment.json"
    if declared.exists() and json.loads(declared.read_text())["hash"] != experiment.hash():
        raise ExperimentError(
            f"{run_dir} holds a run of another experiment: name another --run-dir or remove that folder"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not declared.exists():
        write_json(declared, {"hash": experiment.hash(), "experiment": experiment.model_dump(mode="json")})


def sweep_to_results(experiment: Experiment, dataset: Path, run_dir: Path, stages: Stages) -> dict[str, Any]:
    """Run or continue the sweep, choose the winner and return the results. Needs a Ray that is running."""
    path = run_dir / "results.json"
    trials = plan_trials(experiment)
    done = path.exists()
    with stages.stage("sweep", len(trials), skip=done) as stage:
        if not done:
            started, clock = datetime.now(UTC), time.monotonic()
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

            records = run_sweep(experiment, dataset, run_dir, on_report, on_end)
            seconds = time.monotonic() - clock
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
        results: dict[str, Any] = json.loads(path.read_text())
        stage.advance_to(1, results["selection"]["reason"])
    return results
