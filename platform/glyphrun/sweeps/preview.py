"""What a sweep would do, in a table: its trials, what each reserves, and what they would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from glyphrun.models.zoo import recognizer_settings
from glyphrun.sweeps.estimate import Estimate, kind_of
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, plan_trials, trial_count


def preview(
    experiment: Experiment, estimates: Mapping[str, Estimate], *, gpus: int, tflops: float | None = None
) -> Iterator[RenderableType]:
    """estimates: by kind of trial, none if there is no data set; gpus: of a trial that says nothing of them, on this machine.

    tflops: 10¹² operations a second that another machine sustains.
    """
    trials = plan_trials(experiment)
    yield _table(experiment, trials, estimates)
    total = trial_count(experiment)
    if total > len(trials):
        yield f"{total - len(trials)} more trials are proposed by {experiment.searcher.kind} once these have results."
    workers = experiment.workers_per_trial
    each = {_told(trial.resources.needed(gpus)) for trial in trials}
    shared = f" for each of its {workers} workers" if workers > 1 else ""
    yield f"A trial reserves {' or '.join(sorted(each))}{shared}."
    yield from _cost(experiment, trials, estimates, total, gpus, tflops)
    if experiment.decode_search is not None:
        fewest, most = ways_of_reading(experiment)
        search = experiment.decode_search
        several = f"{most} ways" if fewest == most else f"{fewest} to {most} ways, depending on who survives"
        yield f"Then {min(search.survivors, total)} survivors are read on val in {several}; one of these wins."


def ways_of_reading(experiment: Experiment) -> tuple[int, int]:
    """How many ways of reading a decode search will try, at least and at most; (0, 0) without one."""
    if experiment.decode_search is None:
        return 0, 0
    families = {
        f"{place} {one.family}": (recognizer_settings(one.recognizer, dict(one.changes)).kind, one.decode)
        for place, one in enumerate(experiment.candidates)
    }
    return experiment.decode_search.counts(trial_count(experiment), families)


def preview_json(experiment: Experiment, estimates: Mapping[str, Estimate], *, gpus: int) -> dict[str, Any]:
    """The same for programs; hours of a trial that trains to its end on this machine."""
    trials = plan_trials(experiment)
    return {
        "name": experiment.name,
        "hash": experiment.hash(),
        "trials": [
            {
                **trial.model_dump(mode="json", include={"id", "family", "recognizer", "sampled"}),
                "steps": trial.train.steps,
                "resources": trial.resources.needed(gpus),
                "hours": estimates[kind_of(trial)].hours(trial.train) if estimates else None,
                "train_gflops": trial.train.steps * estimates[kind_of(trial)].step_gflops if estimates else None,
            }
            for trial in trials
        ],
        "proposed_later": trial_count(experiment) - len(trials),
        "ways_of_reading": ways_of_reading(experiment),
    }


def _table(experiment: Experiment, trials: list[Trial], estimates: Mapping[str, Estimate]) -> Table:
    table = Table(title=f"{experiment.name}: {trial_count(experiment)} trials", title_justify="left")
    columns = ["trial", "family", "searched", "steps", "batch", "seed", *(["at most"] if estimates else [])]
    for column in columns:
        table.add_column(column, justify="left" if column in ("trial", "family", "searched") else "right")
    for trial in trials:
        train = trial.train
        batch = f"{train.batch_size}×{train.accumulate}" if train.accumulate > 1 else str(train.batch_size)
        searched = ", ".join(f"{path} {value}" for path, value in trial.sampled.items())
        row = [trial.id, trial.family, searched, str(train.steps), batch, str(train.seed)]
        table.add_row(*row, *([_time(estimates[kind_of(trial)].hours(train))] if estimates else []))
    return table


def _cost(
    experiment: Experiment,
    trials: list[Trial],
    estimates: Mapping[str, Estimate],
    total: int,
    gpus: int,
    tflops: float | None,
) -> Iterator[str]:
    if not estimates:
        yield "Name a data set to have a few steps of each kind of trial timed for an estimate of what they cost."
        return
    workers, scale = experiment.workers_per_trial, total / len(trials)
    here = sum(estimates[kind_of(trial)].hours(trial.train) * _amount(trial, gpus) for trial in trials)
    unit = "GPU" if gpus else "core"
    operations = sum(trial.train.steps * estimates[kind_of(trial)].step_gflops for trial in trials) * scale
    stops = "" if experiment.scheduler.kind in ("none", "pbt") else f"; {experiment.scheduler.kind} stops some early"
    yield (
        f"At most {here * scale * workers:.2g} {unit} hours at the speed of this machine (a few real steps of each kind "
        f"were timed in one process){stops}."
    )
    yield f"Training is {operations / 1e3:.3g}·10¹² operations, forward and backward."
    if tflops is not None:
        elsewhere = sum(
            estimates[kind_of(trial)].hours_at(trial.train, tflops) * (trial.resources.gpus or 1) for trial in trials
        )
        yield f"At most {elsewhere * scale:.2g} GPU hours where {tflops:g}·10¹² operations a second are sustained."
    for name, limit in (("hours", experiment.budget.hours), ("steps", experiment.budget.steps)):
        if limit is not None:
            yield f"The sweep ends when {limit:,} {name} are spent."


def _amount(trial: Trial, gpus: int) -> float:
    needed = trial.resources.needed(gpus)
    return needed["GPU"] if gpus else needed["CPU"]


def _told(needed: Mapping[str, float]) -> str:
    words = {"CPU": "cores", "GPU": "GPUs"}
    return ", ".join(
        f"{amount:g} {words[name]}" if name in words else name.partition(":")[2]
        for name, amount in needed.items()
        if amount
    )


def _time(hours: float) -> str:
    return str(timedelta(seconds=round(hours * 3600)))
