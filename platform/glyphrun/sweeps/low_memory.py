"""Trials whose process Ray has ended because its node had no memory left: they go on with half the batch."""

from __future__ import annotations

import json
from pathlib import Path

import ray

from glyphrun.sweeps.trials import (
    Outcome,
    as_changed,
    halve_batch,
    read_trials,
    trial_folder,
    write_json,
    write_outcome,
)

SAID = "running low on memory"  # by Ray, of every process that its memory monitor has ended
WHY = "its node ran out of memory and Ray ended its process"
CHOSEN = "Selected to kill"  # what stands before it are processes that were let live
PROCESS = "process.json"


def sign(folder: Path) -> None:
    """Leave in a trial's folder by which name Ray knows the process that works on it: this one."""
    write_json(folder / PROCESS, {"actor": ray.get_runtime_context().get_actor_id()})


def halve_ended(error: Exception, run_dir: Path) -> bool:
    """Let the trials whose processes Ray has ended go on with half the batch, or fail where that was done before.

    Tune takes such an end for an error of its own and ends the sweep with it. False if it is about anything else.
    """
    if SAID not in str(error):
        return False
    ended = str(error).partition(CHOSEN)[2]
    found = False
    for trial in read_trials(run_dir):
        folder = trial_folder(run_dir, trial)
        process = folder / PROCESS
        if process.exists() and f"({json.loads(process.read_text(encoding='utf-8'))['actor']})" in ended:
            found = True
            if not halve_batch(as_changed(trial, folder), folder, WHY):
                write_outcome(folder, Outcome("failed", f"{WHY}, also with half the batch"))
    return found
