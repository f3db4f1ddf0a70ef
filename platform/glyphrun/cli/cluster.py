"""Verbs about where sweeps run: whether they can here, and how they are handed to a cluster."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glyphrun.cli.options import JsonOption, console, plain_errors

if TYPE_CHECKING:
    from glyphrun.doctor import Finding
    from glyphrun.sweeps.experiment import Experiment
    from glyphrun.sweeps.nodes import Node

app = typer.Typer()

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "wrong": "[red]✗[/]"}
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A value in place of the file's: train.steps=500.")]


@app.command()
def doctor(
    experiment: Annotated[Path | None, typer.Argument(help="Experiment file.", show_default=False)] = None,
    dataset: Annotated[Path | None, typer.Option(help="Does it fit in memory decoded?", show_default=False)] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file: checked, and its nodes counted.", show_default=False)
    ] = None,
    serve: Annotated[Path | None, typer.Option(help="Serve config that runs at once.", show_default=False)] = None,
    data_cpus: Annotated[int, typer.Option(help="Processors for Ray Data beside the trials.", min=0)] = 0,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What this machine, a cluster or an experiment lacks, before anything is started; exit code 1 if it cannot work.

    Example: [bold]glyphrun doctor experiments/demo.yaml --cluster cluster.yaml[/]
    """
    from glyphrun.cluster import OBJECT_STORE_BYTES
    from glyphrun.doctor import machine_findings
    from glyphrun.sweeps.load import load_experiment

    with plain_errors():
        declared = load_experiment(experiment, sets or ()) if experiment is not None else None
        found = list(machine_findings(Path("runs").absolute(), OBJECT_STORE_BYTES))
        found += _cluster_findings(declared, dataset, cluster, serve, data_cpus)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in found]}))
    else:
        for one in found:
            console.print(f"{MARKS[one.verdict]} {one.what}: {one.found}", soft_wrap=True, highlight=False)
            if one.advice:
                console.print(f"  {one.advice}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(int(any(one.verdict == "wrong" for one in found)))


@app.command()
def submit(
    experiment: Annotated[Path, typer.Argument(help="Experiment file inside the working folder.")],
    dataset: Annotated[
        str | None, typer.Argument(help="Data set, where the cluster has it.", show_default=False)
    ] = None,
    run_dir: Annotated[str, typer.Option(help="Where the run is kept, on the cluster: a whole path.")] = ...,  # type: ignore[assignment]
    address: Annotated[
        str | None, typer.Option(help="Of the cluster's dashboard; a Ray of this machine without.", show_default=False)
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="What is uploaded.")] = Path(),
    sets: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="As of sweep.")] = False,
    extend: Annotated[int, typer.Option(help="As of sweep.", min=0)] = 0,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job too, instead of leaving it running.")
    ] = False,
) -> None:
    """Sweep on a cluster as a job of Ray, and show what it prints; the job's exit code is this command's.

    Example: [bold]glyphrun submit experiments/demo.yaml /mnt/glyphrun/shirts --run-dir /mnt/glyphrun/runs/shirts[/]
    """
    from glyphrun.cluster import interruptible
    from glyphrun.jobs import connect, follow, start
    from glyphrun.sweeps.load import load_experiment

    with plain_errors():
        load_experiment(experiment, sets or ())  # what is wrong with it is better said before the upload
        folder = working_dir.resolve()
        command = _sweep_command(experiment, folder, dataset, run_dir, sets or [], resume, extend)
        client = connect(address)
        job = start(client, command, folder)
        typer.echo(f"job {job}: {shlex.join(command)}", err=True)
        try:
            with interruptible():
                code = follow(client, job, lambda lines: typer.echo(lines, nl=False))
        except KeyboardInterrupt:
            at = f" --address {client.get_address()}"
            if stop_on_interrupt:
                client.stop_job(job)
                typer.echo(f"glyphrun: job {job} is stopped; the same command goes on from there", err=True)
            else:
                typer.echo(
                    f"glyphrun: job {job} goes on; `ray job logs --follow {job}{at}` shows it again and `ray job stop "
                    f"{job}{at}` ends it",
                    err=True,
                )
            raise typer.Exit(130) from None
    raise typer.Exit(code)


def _sweep_command(
    experiment: Path, folder: Path, dataset: str | None, run_dir: str, sets: list[str], resume: bool, extend: int
) -> list[str]:
    """What the job runs, inside the copy of the folder. Raises ValueError for paths that are nowhere on the cluster."""
    try:
        inside = experiment.resolve().relative_to(folder)
    except ValueError:
        raise ValueError(f"{experiment} is not in {folder}, which is what the cluster gets: put it there") from None
    for option, path in (("--run-dir", run_dir), ("the data set", dataset)):
        if path is not None and "://" not in path and not Path(path).is_absolute():
            raise ValueError(
                f"{option} is {path}, and the job runs in a copy of this folder that is gone when it ends: give a whole "
                "path of the cluster's"
            )
    command = ["glyphrun", "sweep", str(inside), *([dataset] if dataset else []), "--run-dir", run_dir]
    command += [part for one in sets for part in ("--set", one)]
    return command + ["--resume"] * resume + (["--extend", str(extend)] if extend else [])


def _cluster_findings(
    declared: Experiment | None, dataset: Path | None, cluster: Path | None, serve: Path | None, data_cpus: int
) -> Iterator[Finding]:
    from glyphrun.doctor import Finding

    if cluster is not None:
        from glyphrun.cluster_file import cluster_file_problems

        problems = cluster_file_problems(cluster)
        yield from (Finding("cluster file", str(cluster), "wrong", problem) for problem in problems)
        if not problems:
            yield Finding("cluster file", f"{cluster}, as Ray and the machines' makers want it")
    nodes, held = _nodes(cluster)
    shapes = {node.name: node for node in nodes}
    for name, node in shapes.items():
        count = sum(other.name == name for other in nodes)
        has = ", ".join(
            f"{key} {value:g}" for key, value in node.total.items() if key not in ("memory", "object_store_memory")
        )
        yield Finding("nodes", f"{'up to ' * node.starts}{count} × {name}: {has}")
    if declared is None:
        return
    yield from _sweep_findings(declared, nodes, held, serve, data_cpus)
    if dataset is not None or declared.dataset is not None:
        from glyphrun.sweeps.load import dataset_of

        yield _data_finding(declared, dataset_of(declared, dataset), nodes)


def _nodes(cluster: Path | None) -> tuple[list[Node], bool]:
    """Of the Ray that RAY_ADDRESS names, of a cluster file alone, or this machine's; and whether Serve runs there."""
    from glyphrun.cluster import OBJECT_STORE_BYTES, ray_for_command
    from glyphrun.device import available_cores
    from glyphrun.sweeps.nodes import cluster_nodes, file_nodes, local_node, serve_runs

    if os.environ.get("RAY_ADDRESS"):
        with ray_for_command():
            return cluster_nodes(cluster), serve_runs()
    if cluster is not None:
        return file_nodes(cluster), False
    import torch

    return [local_node(max(available_cores(), 2), torch.cuda.device_count(), OBJECT_STORE_BYTES)], False


def _sweep_findings(
    declared: Experiment, nodes: list[Node], held: bool, serve: Path | None, data_cpus: int
) -> Iterator[Finding]:
    from glyphrun.doctor import Finding
    from glyphrun.sweeps.beside import data_need, serve_needs
    from glyphrun.sweeps.plan import trial_count
    from glyphrun.sweeps.preflight import preflight

    beside = [*([data_need(data_cpus)] if data_cpus else []), *(serve_needs(serve) if serve is not None else [])]
    plan = preflight(declared, nodes, beside, held=held, trials=trial_count(declared))
    for refusal in plan.refusals:
        yield Finding(declared.name, "would never end", "wrong", refusal)
    if not plan.refusals:
        yield Finding(declared.name, f"max_concurrent_trials {plan.max_concurrent_trials}")
    for note in plan.notes:
        yield Finding(declared.name, note)


def _data_finding(declared: Experiment, dataset: Path, nodes: list[Node]) -> Finding:
    from glyphrun.doctor import GIB, Finding
    from glyphrun.models.zoo import parse_settings
    from glyphrun.recipe import processor_for
    from glyphrun.sweeps.beside import decoded_bytes
    from glyphrun.sweeps.plan import plan_trials

    processors = {processor_for(parse_settings(trial.settings)) for trial in plan_trials(declared)}
    size = decoded_bytes(dataset, processors)
    stores = [node.total["object_store_memory"] for node in nodes if node.total.get("object_store_memory")]
    found = f"{dataset}: train and val take up to {size / GIB:.2f} GiB decoded"
    if stores and size > min(stores):
        advice = (
            f"a node shares {min(stores) / GIB:.2f} GiB between its trials, and the rest goes through its disk: start Ray with "
            "a larger --object-store-memory, or take smaller frames"
        )
        return Finding("data", found, "note", advice)
    return Finding("data", found)
