"""Points of a decode sweep as Tune trials: a trial reads a family of points, and reports after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from glyphrun.sweeps.errors import ExperimentError, last_words
from glyphrun.sweeps.points import DecodePoint, families_of
from glyphrun.sweeps.reading import PointReader
from glyphrun.sweeps.trials import write_json

Told = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What all trials share. families: keys of points; reader: makes what reads in a process; rows: where they go."""

    families: list[list[str]]
    points: dict[str, DecodePoint]
    rows: Path
    reader: Callable[[], PointReader]


class Family(tune.Trainable):
    """A family of points a trial and a point an iteration, in a process that reads other families before and after.

    A class, since Tune takes seconds to hand the process of a function to the next trial.
    """

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """job: comes with the class out of the object store (``tune.with_parameters``)."""
        assert job is not None
        torch.set_num_threads(1)
        self._job, self._reader = job, job.reader()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next family."""
        self._keys = self._job.families[new_config["family"]]
        self._read = zip(self._keys, self._reader.rows([self._job.points[key] for key in self._keys]), strict=True)
        return True

    def step(self) -> dict[str, Any]:
        """The next point."""
        key, row = next(self._read)
        write_json(self._job.rows / f"{key}.json", row)
        scores = {name: row[name] for name in ("exact", "cer", "wer", "ms")}
        return {"setting": row["name"], **scores, "done": key == self._keys[-1]}


def read_families(
    points: Mapping[str, DecodePoint], reader: Callable[[], PointReader], rows: Path, tuned: Path, on_row: Told | None
) -> None:
    """Write the row of every point, by its key; tuned: where Tune keeps its own records; on_row is told of each.

    Raises ExperimentError naming the first point that could not be read, after all others were.
    """
    families = families_of(points)
    trainable = tune.with_parameters(Family, job=Job(families, dict(points), rows, reader))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": int(torch.cuda.is_available())}),
        param_space={"family": tune.grid_search(list(range(len(families))))},
        # Starting a process takes seconds and reading often less, so processes are kept.
        tune_config=tune.TuneConfig(metric="exact", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"attempt-{sum(1 for _ in tuned.glob('attempt-*')) + 1}",
            storage_path=str(tuned),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # rows are all that is kept
            callbacks=[_Told(on_row)],
            verbose=0,
        ),
    )
    grid = tuner.fit()
    for place, family in enumerate(families):
        missing = [key for key in family if not (rows / f"{key}.json").exists()]
        if missing:
            raise ExperimentError(f"{points[missing[0]].name} could not be read: {_reason(grid, place)}")


def _reason(grid: tune.ResultGrid, place: int) -> str:
    try:
        said = str(grid[place].error or "").strip()
    except Exception:  # Tune keeps errors in files, which a full disk cuts off in any place
        said = ""
    return last_words(said) if said else "its process ended and left no word; is there room on the disk?"


class _Told(tune.Callback):
    """Tells of each row."""

    def __init__(self, on_row: Told | None) -> None:
        self.on_row = on_row

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a listener of this process alone; Tune pickles its configuration

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if self.on_row:
            self.on_row()
