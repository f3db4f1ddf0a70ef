"""What a sweep leaves of each trial on disk: its settings, its checkpoint with all reports, and how it ended."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glyphrun.sweeps.plan import Trial
from glyphrun.training.checkpoint import read_progress

Status = Literal["finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; reason is a sentence where it did not finish."""

    status: Status
    reason: str | None = None


@dataclass(frozen=True)
class TrialRecord:
    """A trial with its outcome and its reports (``training.fit.Report`` as JSON), oldest first."""

    trial: Trial
    folder: Path
    outcome: Outcome
    reports: list[dict[str, Any]]

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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Record how a trial ended, once: the first word stands."""
    path = folder / "outcome.json"
    if not path.exists():
        write_json(path, {"status": outcome.status, "reason": outcome.reason})


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
    return TrialRecord(trial, folder, outcome, read_reports(folder))
