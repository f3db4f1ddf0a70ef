"""The rows of the report's tables and the numbers of its headline, formatted for the page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glyphrun.report.canvas import exceeded, winners
from glyphrun.report.wording import (
    ABSENT,
    count,
    duration,
    finite,
    magnitude,
    milliseconds,
    moment,
    percent,
    percent_range,
    reading_text,
    setting,
)

SPLIT_NOTES = {
    "val": "used to choose the winner",
    "test": "held out, scored once",
    "unseen": "numbers that training never showed",
}


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller second line, the key that it sorts by (None sorts last), and a line that warns."""

    text: str
    note: str = ""
    key: float | None = None
    warning: str = ""


@dataclass(frozen=True)
class TrialRow:
    """A trial in the leaderboard; rank counts from 1 among those that were scored."""

    id: str
    rank: int | None
    recognizer: str
    family: str
    status: str
    reason: str
    won: bool
    on_front: bool
    settings: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class SplitRow:
    """A split's scores. low, value and high place its interval on an axis from ``axis_low`` to 1, in per cent."""

    name: str
    note: str
    cells: tuple[Cell, ...]
    exact: str
    interval: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """A wrong reading with how often it happened on each split, most frequent first."""

    truth: str
    reading: str
    kind: str
    n: int
    splits: str
    share: float


LEADERBOARD_COLUMNS = (
    "Exact match",
    "CER",
    "Latency p50",
    "Parameters",
    "GFLOPs",
    "Steps",
    "Time",
)


def leaderboard(results: Mapping[str, Any]) -> list[TrialRow]:
    """Every trial, the best exact match on val first and those without a score last."""
    trials, (won, _) = sorted(results["trials"], key=lambda trial: -_exact(trial)), winners(results)
    return [_trial_row(trial, rank, won) for rank, trial in enumerate(trials, 1)]


def split_rows(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[SplitRow], float]:
    """The splits' scores, and the low end of the common axis of their intervals."""
    names = [*SPLIT_NOTES, *sorted(set(splits) - set(SPLIT_NOTES))]
    present = [(name, splits[name]) for name in names if splits.get(name)]
    lows = [_interval(scores)[0] for _, scores in present]
    axis_low = max(0.0, int(20 * (min(lows, default=0.0) - 0.02)) / 20)
    return [_split_row(name, scores, axis_low) for name, scores in present], axis_low


def confusions(splits: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ("test", "unseen")) -> list[Confusion]:
    """The wrong readings of the named splits together, the most frequent first; val's stay out, for it chose."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for name in names:
        for confusion in (splits.get(name) or {}).get("confusions") or ():
            by_split = counts.setdefault((confusion["truth"], confusion["reading"]), {})
            by_split[name] = by_split.get(name, 0) + int(confusion["n"])
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    most = max((sum(by_split.values()) for by_split in counts.values()), default=1)
    return [
        Confusion(
            truth=reading_text(truth),
            reading=reading_text(reading),
            kind=error_kind(truth, reading),
            n=sum(by_split.values()),
            splits=", ".join(f"{n} in {name}" for name, n in by_split.items()),
            share=100 * sum(by_split.values()) / most,
        )
        for (truth, reading), by_split in ordered
    ]


def error_kind(truth: str, reading: str) -> str:
    """What went wrong, in the terms of edit distance."""
    if not truth:
        return "read although not readable"
    if not reading:
        return "rejected although readable"
    if len(reading) != len(truth):
        return "deletion" if len(reading) < len(truth) else "insertion"
    if sorted(truth) == sorted(reading):
        return "transposition"
    wrong = sum(wanted != found for wanted, found in zip(truth, reading, strict=True))
    return "substitution" if wrong == 1 else f"{wrong} substitutions"


def provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What one needs to know to make the run again, as pairs of term and text."""
    run = results["run"]
    machine, dataset = run.get("machine", {}), run.get("dataset", {})
    counts = ", ".join(f"{name} {count(n)}" for name, n in dataset.get("counts", {}).items())
    memory = finite(machine.get("memory_gib"))
    return [
        ("Started", moment(run.get("started"))),
        ("Finished", f"{moment(run.get('finished'))} ({duration(run.get('seconds'))})"),
        (
            "Processor",
            f"{machine.get('cpu', ABSENT)}, {machine.get('cores', ABSENT)} cores",
        ),
        ("Memory", ABSENT if memory is None else f"{memory:.3g} GiB"),
        ("Precision", str(machine.get("precision", ABSENT))),
        ("Data set", f"{dataset.get('name', ABSENT)}: {counts}"),
        ("Data set hash", str(dataset.get("hash", ABSENT))),
        ("Experiment hash", str(run.get("experiment_hash", ABSENT))),
        ("Seed", str(run.get("seed", ABSENT))),
        ("Code version", str(run.get("code_version", ABSENT))),
        (
            "Packages",
            ", ".join(f"{name} {version}" for name, version in run.get("packages", {}).items()) or ABSENT,
        ),
    ]


def _exact(trial: Mapping[str, Any]) -> float:
    exact = finite((trial.get("val") or {}).get("exact"))
    return -1.0 if exact is None else exact


def _interval(scores: Mapping[str, Any]) -> tuple[float, float, float]:
    value = finite(scores.get("exact")) or 0.0
    low, high = scores.get("exact_ci") or (value, value)
    return float(low), value, float(high)


def _score(scores: Mapping[str, Any], name: str) -> Cell:
    return Cell(
        percent(scores.get(name)),
        percent_range(scores.get(f"{name}_ci")),
        finite(scores.get(name)),
    )


def _trial_row(trial: Mapping[str, Any], rank: int, won: Collection[str]) -> TrialRow:
    val, latency = trial.get("val") or {}, trial.get("latency_ms") or {}
    scored = bool(val)
    steps, max_steps = finite(trial.get("step")), finite(trial.get("max_steps"))
    over = scored and "ms" in exceeded(trial)
    p95 = f"p95 {milliseconds(latency.get('p95'))}" if latency else ""
    cells = (
        _score(val, "exact"),
        Cell(percent(val.get("cer")), key=finite(val.get("cer"))),
        Cell(
            milliseconds(latency.get("p50")),
            p95,
            finite(latency.get("p50")),
            warning="over budget" if over else "",
        ),
        Cell(magnitude(trial.get("parameters")), key=finite(trial.get("parameters"))),
        Cell(magnitude(trial.get("gflops")), key=finite(trial.get("gflops"))),
        Cell(count(steps), "" if max_steps is None else f"of {count(max_steps)}", steps),
        Cell(duration(trial.get("seconds")), key=finite(trial.get("seconds"))),
    )
    return TrialRow(
        id=str(trial["id"]),
        rank=rank if scored else None,
        recognizer=str(trial.get("recognizer", "")),
        family=str(trial.get("family") or "other"),
        status=str(trial.get("status", ABSENT)),
        reason=" · ".join([*filter(None, [trial.get("reason")]), *map(_parent, trial.get("parents") or [])]),
        won=str(trial["id"]) in won,
        on_front=bool(trial.get("on_front")),
        settings=tuple((name, setting(value)) for name, value in (trial.get("changes") or {}).items()),
        cells=cells,
    )


def _parent(parent: Mapping[str, Any]) -> str:
    return f"from {parent['trial']} at step {count(parent['step'])}"


def _split_row(name: str, scores: Mapping[str, Any], axis_low: float) -> SplitRow:
    low, value, high = _interval(scores)
    span = 1 - axis_low

    def place(share: float) -> float:
        return round(100 * min(max((share - axis_low) / span, 0.0), 1.0), 2)

    rate = finite(scores.get("samples_per_s"))
    return SplitRow(
        name=name,
        note=SPLIT_NOTES.get(name, "held out, scored once"),
        cells=(
            Cell(count(scores.get("n"))),
            _score(scores, "exact"),
            _score(scores, "cer"),
            _score(scores, "wer"),
            Cell(ABSENT if rate is None else f"{rate:,.0f}/s", f"{milliseconds(scores.get('ms_per_sample'))} each"),
        ),
        exact=percent(scores.get("exact")),
        interval=percent_range(scores.get("exact_ci")),
        low=place(low),
        value=place(value),
        high=place(high),
    )
