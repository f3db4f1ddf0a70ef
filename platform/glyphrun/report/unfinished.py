"""The report's section on trials that did not train to their end, and on those that nearly did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glyphrun.report.palette import family_of
from glyphrun.report.wording import count, finite, listed, percent

ORDER = ("failed", "interrupted", "stopped", "finished")
SAID = {"failed": "failed", "interrupted": "interrupted", "stopped": "stopped early", "finished": "went on"}


@dataclass(frozen=True)
class UnfinishedRow:
    """A trial: how it ended, the sentence why, and how far it came, share in per cent of its steps."""

    id: str
    family: str
    status: str
    ended: str
    reasons: tuple[str, ...]
    steps: str
    share: float
    exact: str
    key: float | None


@dataclass(frozen=True)
class UnfinishedSection:
    """A sentence for each way of ending, and rows, failures first."""

    sentences: tuple[str, ...]
    rows: tuple[UnfinishedRow, ...]


def unfinished_section(trials: Sequence[Mapping[str, Any]]) -> UnfinishedSection:
    """Of all trials of a run; without rows if all trained to their end and none was tried again."""
    chosen = [trial for trial in trials if trial["status"] != "finished" or trial.get("retried")]
    ordered = sorted(chosen, key=lambda trial: (_place(trial), -(finite(trial.get("step")) or 0)))
    return UnfinishedSection(tuple(_sentences(trials)), tuple(map(_row, ordered)))


def _sentences(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    whole = len(trials)
    finished = sum(trial["status"] == "finished" for trial in trials)
    said = [f"{finished} of {whole} trials trained to their last step."]
    stopped = [trial for trial in trials if trial["status"] == "stopped"]
    if stopped:
        steps = Counter(int(finite(trial.get("step")) or 0) for trial in stopped)
        most = [f"{times} at step {count(step)}" for step, times in sorted(steps.items())]
        where = f": {listed(most)}" if len(most) <= 5 else ""
        said.append(f"{len(stopped)} {'was' if len(stopped) == 1 else 'were'} stopped early{where}.")
    for status, verb in (("failed", "failed"), ("interrupted", "did not end before the sweep did")):
        times = sum(trial["status"] == status for trial in trials)
        if times:
            said.append(f"{times} {verb}.")
    retried = sum(bool(trial.get("retried")) for trial in trials)
    if retried:
        said.append(f"{retried} ran out of memory and went on with half the batch, accumulated twice as often.")
    return said


def _row(trial: Mapping[str, Any]) -> UnfinishedRow:
    step, steps = finite(trial.get("step")) or 0.0, finite(trial.get("max_steps"))
    told = [str(trial.get(key)) for key in ("reason", "retried") if trial.get(key)]
    status, exact = str(trial["status"]), finite((trial.get("val") or {}).get("exact"))
    return UnfinishedRow(
        id=str(trial["id"]),
        family=family_of(trial),
        status=status,
        ended=SAID.get(status, status),
        reasons=tuple(told),
        steps=f"{count(step)} of {count(steps)}" if steps else count(step),
        share=round(100 * min(step / steps, 1.0), 1) if steps else 0.0,
        exact=percent(exact),
        key=exact,
    )


def _place(trial: Mapping[str, Any]) -> int:
    return ORDER.index(trial["status"]) if trial["status"] in ORDER else 0
