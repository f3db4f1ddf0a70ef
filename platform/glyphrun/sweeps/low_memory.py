"""Trials whose process Ray has ended because its node had no memory left: they go on with half the batch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ray

from glyphrun.sweeps.plan import Trial
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
ACTOR = re.compile(r"Actor\((\w+)\)")


def sign(run_dir: Path, trial: Trial) -> None:
    """Leave word of which trial this process works on: a process works on one after another."""
    actor = ray.get_runtime_context().get_actor_id()
    assert actor is not None
    word_of(run_dir, actor).parent.mkdir(parents=True, exist_ok=True)
    write_json(word_of(run_dir, actor), {"trial": trial.id})


def word_of(run_dir: Path, actor: str) -> Path:
    """Where a process, by Ray's name for it, says on which trial it works; of no use to another attempt or machine."""
    return run_dir / "tune" / "processes" / f"{actor}.json"


def halve_ended(error: Exception, run_dir: Path) -> bool:
    """Let the trials whose processes Ray has ended go on with half the batch, or fail where that was done before.

    Tune takes such an end for an error of its own and ends the sweep with it. False if it is about anything else.
    """
    if SAID not in str(error):
        return False
    words = [word_of(run_dir, actor) for actor in ACTOR.findall(str(error).partition(CHOSEN)[2])]
    ended = {json.loads(word.read_text(encoding="utf-8"))["trial"] for word in words if word.exists()}
    for trial in read_trials(run_dir):
        folder = trial_folder(run_dir, trial)
        if trial.id in ended and not halve_batch(as_changed(trial, folder), folder, WHY):
            write_outcome(folder, Outcome("failed", f"{WHY}, also with half the batch"))
    return bool(ended)
