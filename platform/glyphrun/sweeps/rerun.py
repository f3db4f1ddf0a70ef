"""One trial of a run trained again, and whether it ends with the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from glyphrun.data.sample import dataset_hash, read_card
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.errors import ExperimentError, nearest
from glyphrun.sweeps.retention import WEIGHTS, has_weights
from glyphrun.sweeps.training import load_splits, train_trial
from glyphrun.sweeps.trials import TrialRecord, read_change, read_record, read_reports, read_trials, write_change
from glyphrun.training.checkpoint import find_checkpoint


@dataclass(frozen=True)
class Rerun:
    """step: to which it was trained, as the first time. same_curve: every loss and score was the same number.

    difference: the largest between two weights, 0 where all are equal, None where the first ones were removed.
    """

    trial: str
    folder: Path
    step: int
    same_curve: bool
    difference: float | None

    @property
    def equal(self) -> bool:
        """Whether everything that can be compared is the same."""
        return self.same_curve and not self.difference

    def said(self) -> str:
        """In a sentence."""
        curve = "the same losses and scores" if self.same_curve else "other losses or scores"
        if self.difference is None:
            return (
                f"{self.trial}: {curve} up to step {self.step}; its first weights were removed and cannot be compared"
            )
        weights = "weights are equal" if self.difference == 0 else f"weights differ by up to {self.difference:.2g}"
        return f"{self.trial}: {weights}, with {curve} up to step {self.step}"


def rerun_trial(
    run_dir: Path, trial: str, dataset: Path | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> Rerun:
    """Train a trial of a run again, in this process with as many threads, into ``run_dir/reruns``, and compare.

    dataset: where the data lie now, if not where they were. progress is told the step and the last one. Raises
    ExperimentError for a trial that there is none of, that has no result or went on from another's weights, or other data.
    """
    record = _record(run_dir, trial)
    data = _data(run_dir, dataset)
    change = read_change(record.folder)
    if change is not None and change.parents:
        raise ExperimentError(
            f"{trial} went on from the weights of {change.parents[-1]['trial']} at step {change.parents[-1]['step']}: what "
            "population based training led to follows from all of its trials, run the experiment again"
        )
    if not record.reports:
        raise ExperimentError(f"{trial} has no result to compare with: {record.outcome.reason}")
    last = int(record.reports[-1]["step"])
    folder = run_dir / "reruns" / trial
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if change is not None:
        write_change(folder, change)
    processor = processor_for(parse_settings(record.trial.settings))
    threads = torch.get_num_threads()
    torch.set_num_threads(record.trial.resources.cpus or 1)
    try:
        for told in train_trial(record.trial, folder, read_card(data).charset, *load_splits(data, processor)):
            progress(told["step"], last)
            if told["step"] >= last:  # where the scheduler stopped it
                break
    finally:
        torch.set_num_threads(threads)
    return Rerun(
        trial, folder, last, _curve(record.reports) == _curve(read_reports(folder)), _difference(record, folder)
    )


def _record(run_dir: Path, trial: str) -> TrialRecord:
    known = {one.id: one for one in read_trials(run_dir)}
    if trial not in known:
        there = nearest(trial, known) or (f": there are {', '.join(known)}" if known else ", nor any other")
        raise ExperimentError(f"{run_dir} holds no trial {trial}{there}")
    return read_record(run_dir, known[trial])


def _data(run_dir: Path, dataset: Path | None) -> Path:
    claimed = json.loads((run_dir / "dataset.json").read_text(encoding="utf-8"))
    data = dataset or Path(claimed["path"])
    if not data.exists():
        raise ExperimentError(f"the data of {run_dir} lay in {data}, and are not there: name their folder")
    if dataset_hash(data) != claimed["hash"]:
        raise ExperimentError(f"{data} holds other data than {run_dir} was trained on")
    return data


def _curve(reports: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """Without what was timed."""
    return [(one["step"], one["train_loss"], one["scores"]["exact"], one["scores"]["cer"]) for one in reports]


def _difference(record: TrialRecord, folder: Path) -> float | None:
    if not has_weights(record):
        return None
    first, again = find_checkpoint(record.checkpoint), find_checkpoint(folder / record.checkpoint.name)
    assert first is not None and again is not None
    before, after = (load_file(path / WEIGHTS[0]) for path in (first, again))
    return max((float((before[name].double() - after[name].double()).abs().max()) for name in before), default=0.0)
