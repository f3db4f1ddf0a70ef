"""Verbs of a run: the demo, a sweep and its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glyphrun.cli.options import (
    REGISTRY,
    JsonOption,
    RegistryOption,
    RunArgument,
    console,
    plain_errors,
    progress_bar,
)

if TYPE_CHECKING:
    from glyphrun.mirror import Mirror
    from glyphrun.sweeps.experiment import Experiment
    from glyphrun.sweeps.watch import Listener

app = typer.Typer()


@app.command()
def demo(
    smoke: Annotated[bool, typer.Option("--smoke", help="All stages at a small size, in about a minute.")] = False,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept, and found again to go on.")] = None,
    registry: RegistryOption = REGISTRY,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes any free one.", min=0, max=65535)] = 0,
    keep_serving: Annotated[
        bool | None, typer.Option(help="Serve until Ctrl-C; the default at a terminal.", show_default=False)
    ] = None,
) -> None:
    """The main job on real handwritten digits: data, sweep, select, report, promote and serve.

    Example: [bold]glyphrun demo --smoke[/]
    """
    from glyphrun.demo import FULL, SMOKE, run_demo
    from glyphrun.registry import Registry

    with plain_errors():
        run_demo(
            SMOKE if smoke else FULL,
            run_dir or Path("runs/demo-smoke" if smoke else "runs/demo"),
            Registry(registry),
            console,
            port=port,
            keep_serving=sys.stdout.isatty() if keep_serving is None else keep_serving,
        )


ExperimentArgument = Annotated[Path, typer.Argument(help="Experiment file.")]
SweptDataset = Annotated[
    Path | None,
    typer.Argument(help="Folder of a glyphrun data set; the experiment's own without it.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A value in place of the file's: train.steps=500, candidates.0.train.clip=2."),
]


@app.command()
def sweep(
    experiment: ExperimentArgument,
    dataset: SweptDataset = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            help="Where the run is kept, and found again to go on: a folder, or s3://BUCKET/PREFIX; runs/NAME without it.",
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials, what each reserves and what they would cost; run none.")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option(help="With --dry-run: 10¹² operations a second that the target sustains.", min=0.001)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="There must be a run to go on with; at a URI, also one that another machine began."
        ),
    ] = False,
    extend: Annotated[int, typer.Option(help="Add so many trials to a run that has finished.", min=0)] = 0,
    mlflow: Annotated[
        str | None, typer.Option(help="Tell an MLflow too, such as sqlite:///mlflow.db.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the trials of an experiment, choose the winner and write report.html.

    The same command goes on where a run was broken off. Example: [bold]glyphrun sweep experiments/demo.yaml shirts --run-dir runs/shirts[/]
    """
    from glyphrun.mirror import run_at, shown
    from glyphrun.sweeps.load import dataset_of, load_experiment

    with plain_errors():
        declared = load_experiment(experiment, sets or ())
        if dry_run:
            _preview(declared, dataset, tflops, as_json)
            return
        data, resume, place = dataset_of(declared, dataset), resume or bool(extend), run_dir or f"runs/{declared.name}"
        from glyphrun.report.run import report_run

        with run_at(place, _warn, resume=resume) as (folder, mirrors):
            results = _sweep(declared, data, folder, resume, extend, mlflow, mirrors)
            report = f"{shown(place)}/{report_run(folder).name}"
        for trial in results["trials"]:
            if trial["status"] == "failed":
                _warn(f"{trial['id']} failed: {trial['reason']}")
        if as_json:
            typer.echo(json.dumps({"winner": results["winner"], **results["selection"], "report": report}))
            return
        console.print(results["selection"]["reason"])
        console.print(report, soft_wrap=True)


def _warn(said: str) -> None:
    typer.echo(f"glyphrun: {said}", err=True)


def _preview(declared: Experiment, dataset: Path | None, tflops: float | None, as_json: bool) -> None:
    from glyphrun.cluster import gpus
    from glyphrun.sweeps.estimate import time_trials
    from glyphrun.sweeps.load import dataset_of
    from glyphrun.sweeps.plan import plan_trials
    from glyphrun.sweeps.preview import preview, preview_json

    there = dataset is not None or declared.dataset is not None
    trials = plan_trials(declared)
    estimates = time_trials(trials, dataset_of(declared, dataset)) if there else {}
    if as_json:
        typer.echo(json.dumps(preview_json(declared, estimates, gpus=gpus())))
        return
    for part in preview(declared, estimates, gpus=gpus(), tflops=tflops):
        console.print(part)


def _sweep(
    declared: Experiment,
    dataset: Path,
    folder: Path,
    resume: bool,
    extend: int,
    mlflow: str | None,
    mirrors: Sequence[Mirror],
) -> dict[str, Any]:
    from glyphrun.cluster import ray_for_command
    from glyphrun.progress import show_stages
    from glyphrun.sweeps.nodes import expect_shared
    from glyphrun.sweeps.run import claim_run, holds_a_run, sweep_to_results
    from glyphrun.sweeps.tracking import MLflow

    if resume and not holds_a_run(folder):
        raise ValueError(f"{folder} holds no run to go on with: leave out --resume and --extend, or name its --run-dir")
    with claim_run(folder, declared), ray_for_command(), show_stages(console) as stages:
        if mirrors:
            expect_shared(folder)
        listeners: list[Listener] = [*([MLflow(mlflow, declared.name, folder)] if mlflow else []), *mirrors]
        return sweep_to_results(declared, dataset, folder, stages, extend=extend, listeners=listeners)


@app.command()
def rerun(
    run_dir: RunArgument,
    trial: Annotated[str, typer.Argument(help="A trial's id, as on the leaderboard.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="Where the run's data lie now, if elsewhere.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one trial of a run again and say whether it ends with the same weights; exit code 1 if not.

    Example: [bold]glyphrun rerun runs/shirts 002-parseq-nano[/]
    """
    from glyphrun.mirror import fetch_run
    from glyphrun.sweeps.rerun import rerun_trial

    with plain_errors():
        with progress_bar(f"training {trial}") as progress:
            found = rerun_trial(fetch_run(run_dir), trial, dataset and dataset.absolute(), progress)
        if as_json:
            told = {"trial": trial, "step": found.step, "equal": found.equal, "difference": found.difference}
            typer.echo(json.dumps({**told, "same_curve": found.same_curve, "folder": str(found.folder)}))
        else:
            console.print(found.said(), soft_wrap=True)
    raise typer.Exit(0 if found.equal else 1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, by which an editor completes and checks them.

    Example: [bold]glyphrun schema > experiments/experiment.schema.json[/]
    """
    from glyphrun.sweeps.load import experiment_schema

    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


@app.command()
def report(run_dir: RunArgument) -> None:
    """Write a run's report.html again.

    Example: [bold]glyphrun report runs/demo[/]
    """
    from glyphrun.mirror import TRIALS, fetch_run, hand_over
    from glyphrun.report.run import report_run

    with plain_errors():
        written = report_run(fetch_run(run_dir, without=(TRIALS,)))
        console.print(hand_over(run_dir, written), soft_wrap=True)
