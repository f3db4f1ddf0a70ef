"""Which trials keep their weights when a sweep is over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from typing import Any

from glyphrun.sweeps.trials import SNAPSHOTS, TrialRecord, read_outcome, write_json
from glyphrun.training.checkpoint import find_checkpoint

COST = "cost.json"
WEIGHTS = ("weights.safetensors", "optimizer.safetensors")


def has_weights(record: TrialRecord) -> bool:
    """Whether a trial's recognizer can still be had."""
    found = find_checkpoint(record.checkpoint)
    return found is not None and (found / WEIGHTS[0]).exists()


def drop_weights(records: Sequence[TrialRecord], costs: dict[str, dict[str, Any]], keep: Collection[str]) -> list[str]:
    """Remove weights and snapshots of the trials that are not to keep them, and return whose.

    What they cost is kept beside their reports, so that a leaderboard of an extended sweep can still say it. A trial that
    has not ended keeps everything, for it may go on.
    """
    dropped = []
    for record in records:
        trial = record.trial.id
        if trial in keep or read_outcome(record.folder) is None or not has_weights(record):
            continue
        if trial in costs:
            write_json(record.folder / COST, costs[trial])
        found = find_checkpoint(record.checkpoint)
        assert found is not None
        for name in WEIGHTS:
            (found / name).unlink(missing_ok=True)
        shutil.rmtree(record.folder / SNAPSHOTS, ignore_errors=True)
        dropped.append(trial)
    return dropped


def kept_cost(record: TrialRecord) -> dict[str, Any] | None:
    """What a trial cost whose weights were removed."""
    path = record.folder / COST
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
