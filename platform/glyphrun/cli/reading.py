"""Verbs that read with a model: scores, readings, features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from glyphrun.cli.options import (
    REGISTRY,
    DatasetArgument,
    GraphemesOption,
    JsonOption,
    ModelArgument,
    RegistryOption,
    console,
    plain_errors,
    progress_bar,
)

app = typer.Typer()


@app.command()
def evaluate(
    model: ModelArgument,
    dataset: DatasetArgument,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    by_graphemes: GraphemesOption = False,
    as_json: JsonOption = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Exact match, CER and WER of a model on a split, with confidence intervals and speed.

    Example: [bold]glyphrun evaluate shirt-numbers runs/demo/data --split test --json[/]
    """
    from glyphrun.data.batches import load_split
    from glyphrun.data.sample import iterate_samples, read_card
    from glyphrun.ensemble_bundle import load_reader
    from glyphrun.evaluation.evaluate import evaluate as evaluate_reader
    from glyphrun.evaluation.evaluate import out_of_reach
    from glyphrun.evaluation.metrics import Unit
    from glyphrun.registry import Registry

    with plain_errors():
        reader = load_reader(Registry(registry).resolve(model))
        samples = iterate_samples(dataset, "train") if "train" in read_card(dataset).counts else iter(())
        texts = {sample.text for sample in samples if sample.text is not None}
        arrays = [load_split(dataset, split, processor) for processor in reader.processors]
        unit: Unit = "graphemes" if by_graphemes else "characters"
        scores = evaluate_reader(reader, arrays, trained_texts=texts, unit=unit).to_json()
        beyond = out_of_reach(reader, arrays[0].texts)
    if beyond:
        typer.echo(f"glyphrun: {beyond}", err=True)
    if as_json:
        print(json.dumps({"model": model, "split": split, "cer_unit": unit, **scores}, ensure_ascii=False))
        return
    table = Table("metric", "value", "95 % interval")
    for name in ("exact", "cer", "wer"):
        value, interval = scores[name], scores[f"{name}_ci"]
        shown = ("–", "") if value is None else (f"{value:.4f}", " to ".join(f"{end:.4f}" for end in interval))
        table.add_row(f"{name} of grapheme clusters" if by_graphemes and name == "cer" else name, *shown)
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

    from glyphrun.ensemble_bundle import load_reader
    from glyphrun.images import read_frames
    from glyphrun.registry import Registry

    with plain_errors():
        items = [read_frames(path) for path in paths]
        reader = load_reader(Registry(registry).resolve(model))
        readings = reader.read(items, names=[str(path) for path in paths], explain=True)
    for path, reading in zip(paths, readings, strict=True):
        if as_json:
            print(json.dumps({"path": str(path), **asdict(reading)}, ensure_ascii=False))
        else:
            shown = reading.text or "(nothing readable)"
            doubt = "\tabstained" if reading.abstained else ""
            line = f"{path}\t{shown}\t{reading.confidence:.3f}{doubt}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def embed(
    model: ModelArgument,
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    registry: RegistryOption = REGISTRY,
) -> None:
    """Encoder features of every sample: pooled, and for each patch of each frame.

    Example: [bold]glyphrun embed shirt-numbers runs/demo/data features.parquet[/]
    """
    from glyphrun.data.sample import read_card
    from glyphrun.ensemble_bundle import load_reader
    from glyphrun.evaluation.embed import embed_dataset
    from glyphrun.registry import Registry

    with plain_errors(), progress_bar("samples") as progress:
        reader = load_reader(Registry(registry).resolve(model))
        count, total = 0, sum(read_card(dataset).counts.values())

        def advance(done: int) -> None:
            nonlocal count
            count += done
            progress(count, total)

        rows = embed_dataset(reader, dataset, out, advance)
    console.print(f"{out}: {rows} samples", soft_wrap=True)
