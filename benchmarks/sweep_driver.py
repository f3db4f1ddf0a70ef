"""What a sweep costs beside its trials: wall time of 100 short ones against their compute divided by the slots.

    python benchmarks/sweep_driver.py

Each trial trains a nano recognizer for as many steps as take about a second here on one core, evaluation included, which is
tried first. All runs as in ``glyphrun sweep``: trials in processes of Ray, ASHA, checkpoints, the live table, TensorBoard's
events. Processes that start, recognizers that are built, checkpoints and whatever the driver does are what is above the
floor of 1. The wall time begins when Ray runs and ends when all is known of all trials. Beside the ratio it prints the
driver's processor time, and its resident memory when 20 trials have ended and when all have. Aim: at most 1.5, and memory
that stays.
"""

from __future__ import annotations

import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from material import planned_tracklets
from measure import command_line
from rich.console import Console

from glyphrun.cluster import ray_for_command
from glyphrun.data.sample import read_card
from glyphrun.data.shards import write_samples
from glyphrun.data.simulate import SimulatorSettings, render_plan
from glyphrun.models.zoo import parse_settings
from glyphrun.progress import show_stages
from glyphrun.recipe import processor_for
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.live import LiveTable
from glyphrun.sweeps.nodes import cluster_nodes
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.preflight import require
from glyphrun.sweeps.tracking import TensorBoard
from glyphrun.sweeps.train import run_sweep
from glyphrun.sweeps.training import load_splits, train_trial
from glyphrun.text import DIGITS

TRIED_STEPS = 40
SETTLED = 20  # trials after which the driver's memory is not to grow


class Memory:
    """Listens to a sweep for the driver's resident memory in MiB, after each trial that ended."""

    def __init__(self) -> None:
        self.mib: list[float] = []

    def started(self, *_: Any) -> None:
        """Nothing."""

    def reported(self, *_: Any) -> None:
        """Nothing."""

    def waits(self, *_: Any) -> None:
        """Nothing."""

    def ended(self, *_: Any) -> None:
        """One more."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib.append(pages * resource.getpagesize() / 2**20)


def main() -> None:
    """Print wall time, compute, their ratio and the driver's memory."""
    parser = command_line(__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="of compute a trial, about (default: %(default)s)")
    parser.add_argument("--recognizer", default="query-digits-nano")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        dataset, run_dir = Path(folder) / "data", Path(folder) / "run"
        write_tracklets(dataset, asked.seed)
        steps = steps_of(asked.seconds, asked.recognizer, dataset, Path(folder) / "tried")
        experiment = declare(asked.recognizer, asked.trials, steps, asked.seed)
        run_dir.mkdir()
        memory = Memory()
        with ray_for_command(), show_stages(Console(quiet=True)) as stages:
            slots = require(experiment, cluster_nodes()).max_concurrent_trials
            with stages.stage("sweep", asked.trials) as stage:
                shown = LiveTable(experiment, stage, asked.trials, steps * asked.trials)
                started, busy = perf_counter(), process_time()
                records = run_sweep(experiment, dataset, run_dir, [shown, TensorBoard(run_dir), memory])
                wall, busy = perf_counter() - started, process_time() - busy
    if {record.outcome.status for record in records} != {"finished"}:
        raise SystemExit(f"not all trials finished: {[record.outcome for record in records]}")
    compute = sum(record.reports[-1]["seconds"] for record in records)
    print(
        f"{asked.recognizer}, {asked.trials} trials of {steps} steps, {compute / asked.trials:.2f} s of compute each, "
        f"{slots} slots, {wall:.1f} s of wall time"
    )
    print(f"wall time / (compute / slots) = {wall / (compute / slots):.2f}")
    print(f"driver: {busy:.1f} s of processor time, {1e3 * busy / asked.trials:.0f} ms a trial")
    if asked.trials > SETTLED:
        before, after = memory.mib[SETTLED - 1], memory.mib[-1]
        print(f"driver: {before:.0f} MiB after {SETTLED} trials, {after:.0f} MiB after {asked.trials}")


def declare(recognizer: str, trials: int, steps: int, seed: int) -> Experiment:
    """Trials that are evaluated twice, none of which is stopped on the way."""
    candidate = {
        "family": "short",
        "recognizer": recognizer,
        "space": {"train.learning_rate": {"uniform": [1e-4, 1e-3]}},
    }
    return Experiment.model_validate(
        {
            "name": "driver",
            "trials": trials,
            "candidates": [candidate],
            "train": {
                "steps": steps,
                "batch_size": 16,
                "evaluate_every": max(steps // 2, 1),
                "checkpoint_every": steps,
            },
            "scheduler": {"grace_steps": steps},
            "seed": seed,
        }
    )


def steps_of(seconds: float, recognizer: str, dataset: Path, folder: Path) -> int:
    """How many steps take so long on one core, an even number."""
    (trial,) = plan_trials(declare(recognizer, 1, TRIED_STEPS, 0))
    splits = load_splits(dataset, processor_for(parse_settings(trial.settings)))
    torch.set_num_threads(1)
    for attempt in ("warm", "timed"):
        told = list(train_trial(trial, folder / attempt, read_card(dataset).charset, *splits))
    return max(2 * round(seconds * TRIED_STEPS / told[-1]["seconds"] / 2), 2)


def write_tracklets(folder: Path, seed: int) -> None:
    """A few simulated tracklets."""
    settings = SimulatorSettings(frames=(4, 4))
    counts = {"train": 64, "val": 16, "test": 8, "unseen": 8}
    write_samples(
        (render_plan(plan, glyphs, settings) for plan, glyphs in planned_tracklets(counts, settings, seed)),
        folder,
        name="tracklets",
        licence="none, it is made for a benchmark",
        description="Simulated shirt numbers.",
        charset=DIGITS,
    )


if __name__ == "__main__":
    main()
