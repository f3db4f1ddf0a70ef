"""Verbs of a run: the demo, a sweep and its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from glyphrun.cli.options import (
    REGISTRY,
    RegistryOption,
    console,
    plain_errors,
)

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
        Path | None, typer.Option(help="Where the run is kept, and found again to go on.", show_default=False)
    ] = None,
    sets: SetOption = None,
) -> None:
    """Train the trials of an experiment, choose the winner and write report.html.

    Example: [bold]glyphrun sweep experiments/demo.yaml shirts --run-dir runs/shirts[/]
    """
    from glyphrun.cluster import ray_for_command
    from glyphrun.progress import show_stages
    from glyphrun.report.run import report_run
    from glyphrun.sweeps.load import dataset_of, load_experiment
    from glyphrun.sweeps.run import claim_run, sweep_to_results

    with plain_errors():
        declared = load_experiment(experiment, sets or ())
        data = dataset_of(declared, dataset)
        folder = (run_dir or Path("runs") / declared.name).absolute()
        with claim_run(folder, declared), ray_for_command(), show_stages(console) as stages:
            results = sweep_to_results(declared, data, folder, stages)
        console.print(results["selection"]["reason"])
        console.print(str(report_run(folder)), soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, by which an editor completes and checks them.

    Example: [bold]glyphrun schema > experiments/experiment.schema.json[/]
    """
    import json

    from glyphrun.sweeps.load import experiment_schema

    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write a run's report.html again.

    Example: [bold]glyphrun report runs/demo[/]
    """
    from glyphrun.report.run import report_run

    with plain_errors():
        console.print(str(report_run(run_dir)), soft_wrap=True)
