"""The verbs of ``glyphrun``, each a few lines; what they do is elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(
    name="glyphrun",
    help="From labelled frames to a served text recognizer: sweep, select, report, promote, serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Make, import, check and look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()

RegistryOption = Annotated[
    Path, typer.Option("--registry", envvar="GLYPHRUN_REGISTRY", help="Folder of the model registry.")
]
DatasetArgument = Annotated[Path, typer.Argument(help="Folder of a glyphrun data set.", show_default=False)]
REGISTRY = Path("runs/registry")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that a person can mend are one sentence and exit code 1; Ctrl-C is 130."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if type(error).__module__.startswith(("glyphrun", "builtins")):
            typer.secho(f"glyphrun: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
            raise typer.Exit(1) from None
        raise
    except KeyboardInterrupt:
        typer.echo("glyphrun: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A callback (done, in all) behind a progress bar on standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
            Registry(registry.absolute()),
            console,
            port=port,
            keep_serving=sys.stdout.isatty() if keep_serving is None else keep_serving,
        )


@data_app.command("simulate")
def data_simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    train: Annotated[int, typer.Option(help="Tracklets in train; val, test and unseen get an eighth each.")] = 2000,
    seed: int = 0,
) -> None:
    """Shirt-number tracklets over real handwritten digits.

    Example: [bold]glyphrun data simulate shirts --train 500[/]
    """
    from glyphrun.cluster import ray_for_command
    from glyphrun.data.simulate import SimulatorSettings
    from glyphrun.data.stream import simulate_dataset

    rest = max(train // 8, 1)
    counts = {"train": train, "val": rest, "test": rest, "unseen": rest}
    with plain_errors(), ray_for_command(), progress_bar("tracklets") as progress:
        card = simulate_dataset(out, SimulatorSettings(), counts, seed, progress=progress)
    console.print(f"{out}: " + ", ".join(f"{split} {count}" for split, count in card.counts.items()))


@data_app.command("import")
def data_import(
    format: Annotated[str, typer.Argument(help="Layout of the source: table (labels.tsv) or soccernet.")],
    source: Annotated[Path, typer.Argument(help="Folder or zip file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    licence: Annotated[str, typer.Option(help="Licence of the images, for the card.")] = "not stated",
    split: Annotated[str, typer.Option(help="Split of a source that names none.")] = "train",
    charset: Annotated[str | None, typer.Option(help="Reject labels with other characters; all by default.")] = None,
    max_length: Annotated[int, typer.Option(help="Reject labels of more characters.", min=1)] = 256,
) -> None:
    """Bring your own images. Rows that cannot be used are kept in rejected.parquet with the reason.

    Example: [bold]glyphrun data import table crops.zip crops[/]
    """
    from glyphrun.cluster import ray_for_command
    from glyphrun.data.importers import import_dataset

    with plain_errors(), ray_for_command(), progress_bar("rows") as progress:
        card = import_dataset(
            format,
            source,
            out,
            licence=licence,
            split=split,
            charset=charset,
            max_length=max_length,
            progress=progress,
        )
    counts = ", ".join(f"{split} {count}" for split, count in card.counts.items())
    console.print(f"{out}: {counts}; {card.rejected} rejected")


@data_app.command("check")
def data_check(dataset: DatasetArgument) -> None:
    """Verify hashes, columns, labels, images and that nothing is in two splits. Exit code 1 if anything is wrong.

    Example: [bold]glyphrun data check shirts[/]
    """
    from glyphrun.data.check import check_dataset

    with plain_errors(), progress_bar("samples") as progress:
        problems = check_dataset(dataset, progress=progress)
    for problem in problems:
        console.print(f"{problem.where}: {problem.what}", soft_wrap=True, markup=False)
    if problems:
        raise typer.Exit(1)
    console.print(f"{dataset}: nothing wrong")


@data_app.command("show")
def data_show(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("contact-sheet.png"),
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    count: int = 24,
    seed: int = 0,
) -> None:
    """A contact sheet of samples with their labels.

    Example: [bold]glyphrun data show shirts --split unseen --out unseen.png[/]
    """
    from glyphrun.data.show import contact_sheet

    with plain_errors():
        contact_sheet(dataset, out, split=split, count=count, seed=seed)
    console.print(str(out), soft_wrap=True)


@app.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    dataset: DatasetArgument,
    run_dir: Annotated[Path, typer.Option(help="Where the run is kept, and found again to go on.")],
) -> None:
    """Train the trials of an experiment, choose the winner and write report.html.

    Example: [bold]glyphrun sweep experiments/demo.yaml shirts --run-dir runs/shirts[/]
    """
    from glyphrun.cluster import ray_for_command
    from glyphrun.progress import show_stages
    from glyphrun.report.run import report_run
    from glyphrun.sweeps.experiment import load_experiment
    from glyphrun.sweeps.run import claim_run, sweep_to_results

    with plain_errors():
        declared = load_experiment(experiment)
        with claim_run(run_dir.absolute(), declared), ray_for_command(), show_stages(console) as stages:
            results = sweep_to_results(declared, dataset.absolute(), run_dir.absolute(), stages)
        console.print(results["selection"]["reason"])
        console.print(str(report_run(run_dir)), soft_wrap=True)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write a run's report.html again.

    Example: [bold]glyphrun report runs/demo[/]
    """
    from glyphrun.report.run import report_run

    with plain_errors():
        console.print(str(report_run(run_dir)), soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle's folder, a model's name or NAME@VERSION.")],
    dataset: DatasetArgument,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Exact match, CER and WER of a model on a split, with confidence intervals and speed.

    Example: [bold]glyphrun evaluate shirt-numbers runs/demo/data --split test --json[/]
    """
    from glyphrun.bundle import load_engine
    from glyphrun.data.batches import load_split
    from glyphrun.data.sample import iterate_samples, read_card
    from glyphrun.evaluation.evaluate import evaluate as evaluate_engine
    from glyphrun.registry import Registry

    with plain_errors():
        engine = load_engine(Registry(registry).resolve(model))
        samples = iterate_samples(dataset, "train") if "train" in read_card(dataset).counts else iter(())
        texts = {sample.text for sample in samples if sample.text is not None}
        arrays = load_split(dataset, split, engine.processor)
        scores = evaluate_engine(engine, arrays, trained_texts=texts).to_json()
    if as_json:
        print(json.dumps({"model": model, "split": split, **scores}, ensure_ascii=False))
        return
    table = Table("metric", "value", "95 % interval")
    for name in ("exact", "cer", "wer"):
        value, interval = scores[name], scores[f"{name}_ci"]
        shown = ("–", "") if value is None else (f"{value:.4f}", " to ".join(f"{end:.4f}" for end in interval))
        table.add_row(name, *shown)
    for name, group in scores["by_training"].items():
        table.add_row(f"exact, {name} in training", f"{group['exact']:.4f}", f"n = {group['n']}")
    table.add_row("samples/s", f"{scores['samples_per_s']:.1f}", f"{scores['ms_per_sample']:.2f} ms a sample")
    console.print(table)


@app.command()
def recognize(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders that each hold a tracklet's frames.")],
    model: Annotated[str, typer.Option(help="A bundle's folder, a model's name or NAME@VERSION.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Read images; a folder is one tracklet.

    Example: [bold]glyphrun recognize crop.png tracklet/ --model shirt-numbers[/]
    """
    from dataclasses import asdict

    from glyphrun.bundle import load_engine
    from glyphrun.images import read_frames
    from glyphrun.registry import Registry

    with plain_errors():
        items = [read_frames(path) for path in paths]
        engine = load_engine(Registry(registry).resolve(model))
        readings = engine.read(items, names=[str(path) for path in paths], explain=True)
    for path, reading in zip(paths, readings, strict=True):
        if as_json:
            print(json.dumps({"path": str(path), **asdict(reading)}, ensure_ascii=False))
        else:
            shown = reading.text or "(nothing readable)"
            console.print(f"{path}\t{shown}\t{reading.confidence:.3f}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="A bundle's folder, a model's name or NAME@VERSION.")],
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    registry: RegistryOption = REGISTRY,
) -> None:
    """Encoder features of every sample: pooled, and for each patch of each frame.

    Example: [bold]glyphrun embed shirt-numbers runs/demo/data features.parquet[/]
    """
    from glyphrun.bundle import load_engine
    from glyphrun.data.sample import read_card
    from glyphrun.evaluation.embed import embed_dataset
    from glyphrun.registry import Registry

    with plain_errors(), progress_bar("samples") as progress:
        engine = load_engine(Registry(registry).resolve(model))
        count, total = 0, sum(read_card(dataset).counts.values())

        def advance(done: int) -> None:
            nonlocal count
            count += done
            progress(count, total)

        rows = embed_dataset(engine, dataset, out, advance)
    console.print(f"{out}: {rows} samples", soft_wrap=True)


@app.command()
def promote(
    run_dir: Annotated[Path, typer.Argument(help="A finished run, or a bundle's folder.")],
    name: Annotated[str, typer.Option(help="Name in the registry.")],
    registry: RegistryOption = REGISTRY,
) -> None:
    """Make a run's winner the current version of a name in the registry.

    Example: [bold]glyphrun promote runs/demo --name shirt-numbers[/]
    """
    from glyphrun.registry import Registry

    with plain_errors():
        bundle = run_dir / "bundle" if (run_dir / "bundle").exists() else run_dir
        model = Registry(registry).promote(bundle, name)
    console.print(f"{model.name} version {model.version}: {model.path}", soft_wrap=True)


@app.command()
def models(registry: RegistryOption = REGISTRY) -> None:
    """The models of the registry.

    Example: [bold]glyphrun models[/]
    """
    from glyphrun.bundle import read_manifest
    from glyphrun.registry import Registry

    with plain_errors():
        table = Table()
        for column in ("name", "version", "recognizer", "exact on test"):
            table.add_column(column, no_wrap=True)
        table.add_column("folder", overflow="fold")
        for model in Registry(registry).models():
            manifest = read_manifest(model.path)
            scores = manifest.metrics.get("test") or manifest.metrics.get("val")
            exact = f"{scores['exact']:.3f}" if scores else ""
            table.add_row(model.name, str(model.version), manifest.recognizer["kind"], exact, str(model.path))
    console.print(table)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A bundle's folder, a model's name or NAME@VERSION.")],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    registry: RegistryOption = REGISTRY,
) -> None:
    """Serve a model over HTTP with a page to try it, until Ctrl-C.

    Example: [bold]glyphrun serve shirt-numbers[/]
    """

    from glyphrun.cluster import gpus, wait_for_interrupt
    from glyphrun.registry import Registry
    from glyphrun_serve.app import ServeSettings, run

    with plain_errors():
        bundle = Registry(registry.absolute()).resolve(model)
    with plain_errors(), run(ServeSettings(bundle=bundle, gpus=gpus()), host=host, port=port) as server:
        console.print(f"{server.url}/  (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()
    console.print("Stopped.")
