"""A run's folder: that one process works in it, and what it says of the bundle that is to be promoted.

That is where the bundle lies, its data set and its own latency budget.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glyphrun.bundle import SUMS
from glyphrun.data.sample import CARD_FILE, dataset_hash
from glyphrun.device import default_device
from glyphrun.target import LatencyBudget, Target


class PromotionError(ValueError):
    """A candidate that cannot be measured; the message says what is missing."""


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a folder, which is made. Raises BlockingIOError if one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process works in {folder}: wait for it or name another --run-dir") from None
        yield


def bundle_of(run: Path) -> Path:
    """The bundle of a finished run, or the folder itself if it is one. Raises PromotionError."""
    for folder in (run / "bundle", run):
        if (folder / SUMS).exists():
            return folder
    raise PromotionError(f"{run} holds no bundle: name the folder of a run that has ended, or a bundle's")


def dataset_of(run: Path) -> Path | None:
    """The data set of a run where it still lies and is what it was, else None."""
    known = _json(run / "dataset.json")
    for folder in (known.get("path"), run / "data"):
        if folder and (Path(folder) / CARD_FILE).exists() and dataset_hash(folder) == known.get("hash"):
            return Path(folder)
    return None


def target_of(run: Path) -> Target | None:
    """The run's own budget, of an item alone, None if it states none."""
    declared = _json(run / "results.json").get("budget", {})
    if not declared.get("latency_ms"):
        return None
    experiment = _json(run / "experiment.json").get("experiment", {})
    frames = experiment.get("budget", {}).get("frames")
    try:
        return Target(
            name=f"the experiment of {run.name}",
            budget=LatencyBudget(latency_ms=declared["latency_ms"], percentile=50, frames=frames),
            threads=experiment.get("resources", {}).get("cpus") or 1,
            gpu=default_device().type == "cuda",
        )
    except ValidationError as error:
        raise PromotionError(f"{run}: its budget cannot be read: {error.errors()[0]['msg']}") from None


def _json(path: Path) -> dict[str, Any]:
    """An object in a run's folder, empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PromotionError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
