"""What a sweep leaves of each trial on disk: its settings, its checkpoint with all reports, and how it ended."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glyphrun.sweeps.plan import Trial
from glyphrun.training.checkpoint import read_progress
from glyphrun.training.fit import TrainSettings

MEASURED = "measured.json"
ADAPTERS = "adapters"  # what LoRA had changed by then, alone, of each snapshot
SNAPSHOTS = "snapshots"  # bundles of a trial's recognizer at stated steps, beside its checkpoint
Status = Literal["finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; reason is a sentence where it did not finish, retried one where memory had not sufficed."""

    status: Status
    reason: str | None = None
    retried: str | None = None


@dataclass(frozen=True)
class Change:
    """What became of a trial's settings after it was planned.

    train: training settings in place of the planned ones; sampled: dimensions that were drawn anew; retried: why the batch
    was halved; parents: by population based training, at which steps it went on from which trial's checkpoint.
    """

    train: dict[str, Any]
    sampled: dict[str, Any] = field(default_factory=dict)
    retried: str | None = None
    parents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrialRecord:
    """A trial with its outcome and its reports (``training.fit.Report`` as JSON), oldest first."""

    trial: Trial
    folder: Path
    outcome: Outcome
    reports: list[dict[str, Any]]

    @property
    def measured(self) -> dict[str, float]:
        """Objectives that were measured when it first reported; nothing if none was asked for."""
        return read_measured(self.folder)

    @property
    def parents(self) -> list[dict[str, Any]]:
        """By population based training, at which steps it went on from which trial's checkpoint."""
        change = read_change(self.folder)
        return change.parents if change else []

    @property
    def checkpoint(self) -> Path:
        """Where its weights are."""
        return checkpoint_folder(self.folder)


def trial_folder(run_dir: Path, trial: Trial) -> Path:
    """The trial's folder inside a run."""
    return run_dir / "trials" / trial.id


def checkpoint_folder(folder: Path) -> Path:
    """The checkpoint inside a trial's folder."""
    return folder / "checkpoint"


def is_trial(folder: Path) -> bool:
    """Whether a folder is that of a trial which was begun."""
    return (folder / "trial.json").is_file()


def read_trial(folder: Path) -> Trial:
    """The trial of a folder, as it was planned or proposed."""
    return Trial.model_validate_json((folder / "trial.json").read_bytes())


def begin(run_dir: Path, trial: Trial) -> None:
    """Make the folder of a trial that is to run."""
    folder = trial_folder(run_dir, trial)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", trial.model_dump(mode="json"))


def read_measured(folder: Path) -> dict[str, float]:
    """What was measured of a trial; nothing if it has not reported or nothing was asked for."""
    path = folder / MEASURED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_change(folder: Path, change: Change) -> None:
    """Record what a trial goes on with."""
    write_json(folder / "change.json", asdict(change))


def read_change(folder: Path) -> Change | None:
    """What a trial goes on with; None if that is what was planned."""
    path = folder / "change.json"
    return Change(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def as_changed(trial: Trial, folder: Path) -> Trial:
    """The trial as it goes on."""
    change = read_change(folder)
    if change is None:
        return trial
    train = TrainSettings.model_validate({**trial.train.model_dump(), **change.train})
    return trial.model_copy(update={"train": train, "sampled": {**trial.sampled, **change.sampled}})


def halve_batch(trial: Trial, folder: Path, why: str, *, least: int = 1) -> bool:
    """Let a trial go on with half the batch and twice the accumulation, once; least: items that a batch must have.

    False if it has done so before or the batch is too small. trial: as it goes on until now.
    """
    before = read_change(folder) or Change({})
    batch, accumulate = trial.train.batch_size // 2, trial.train.accumulate * 2
    if before.retried or batch < least:
        return False
    retried = f"batch_size {trial.train.batch_size} became {batch}, accumulated {accumulate} times: {why}"
    train = {**before.train, "batch_size": batch, "accumulate": accumulate}
    write_change(folder, replace(before, train=train, retried=retried))
    return True


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Record how a trial ended, once: the first word stands."""
    path = folder / "outcome.json"
    if not path.exists():
        change = read_change(folder)
        write_json(path, asdict(replace(outcome, retried=change.retried if change else None)))


def read_outcome(folder: Path) -> Outcome | None:
    """How a trial ended; None if it has not."""
    path = folder / "outcome.json"
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports in a trial's checkpoint."""
    progress = read_progress(checkpoint_folder(folder))
    return [] if progress is None else list(progress["reports"])


def read_record(run_dir: Path, trial: Trial) -> TrialRecord:
    """All that is known of a trial."""
    folder = trial_folder(run_dir, trial)
    outcome = read_outcome(folder) or Outcome("interrupted", "the sweep ended before this trial did")
    return TrialRecord(as_changed(trial, folder), folder, outcome, read_reports(folder))


def read_trials(run_dir: Path) -> list[Trial]:
    """Every trial that was begun in a run, as it was planned or proposed, by number."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (run_dir / "trials").glob("*/trial.json")]
    return sorted((Trial.model_validate(one) for one in found), key=lambda trial: trial.number)
