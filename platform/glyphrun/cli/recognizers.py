"""Verbs about recognizers themselves: what they cost, what published weights fit, adapters made one."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from glyphrun.cli.options import DatasetArgument, JsonOption, console, plain_errors

if TYPE_CHECKING:
    from glyphrun.models.quantize import Method

app = typer.Typer()


class MergeMethod(StrEnum):
    """How adapters are made one."""

    average = "average"
    stack = "stack"


adapter_app = typer.Typer(help="LoRA adapters.", no_args_is_help=True)
app.add_typer(adapter_app, name="adapter")


@app.command()
def cost(
    names: Annotated[list[str], typer.Argument(help="Recognizers by name; the baseline is measured beside them.")],
    precision: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16, float16 or int8; may be given several times.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the GPU where there is one.", show_default=False)
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a sequence.", min=1)] = 8,
    windows: Annotated[int, typer.Option(help="Windows that a tracklet is read in.", min=1)] = 4,
    baseline: Annotated[str, typer.Option(help="What speeds relate to.")] = "parseq-small-temporal",
    source: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a hub model, where the hub cannot be reached.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, multiply-adds, memory and speed of recognizers beside the baseline and beside published figures.

    Example: [bold]glyphrun cost query-digits parseq-tiny-temporal --precision float32 --precision int8[/]
    """
    from glyphrun.evaluation.cost_table import CostSettings, cost_json, cost_table, shown

    with plain_errors():
        settings = CostSettings.model_validate(
            {
                "device": device,
                "frames": frames,
                "windows": windows,
                "baseline": baseline,
                "sources": dict(map(_source, source or [])),
            }
        )
        with Console(stderr=True).status("") as status:
            rows = cost_table(names, precision or ["float32"], settings, lambda row: status.update(row))
    if as_json:
        print(json.dumps(cost_json(rows, settings), ensure_ascii=False))
        return
    table = shown(rows, settings)
    # A terminal that is too narrow breaks the lines; a number that is cut short would be another number.
    table.width = console.measure(table, options=console.options.update(width=1000)).maximum
    console.print(table, crop=False)


def _source(given: str) -> tuple[str, str]:
    name, _, folder = given.partition("=")
    if not folder:
        raise ValueError(f"--source {given}: it has the form NAME=FOLDER, such as trocr-base=/models/trocr-base")
    return name, folder


@app.command()
def transfer(
    recognizer: Annotated[str, typer.Argument(help="A recognizer by name.")],
    weights: Annotated[str, typer.Argument(help="A published name, a url that carries its sha256, or a file.")],
    dataset: DatasetArgument,
    mismatch: Annotated[str, typer.Option(help="What may differ: fail, extend or replace.")] = "fail",
    weights_charset: Annotated[
        str | None, typer.Option(help="Characters of the weights in their order, if nothing says.", show_default=False)
    ] = None,
    weights_image: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH that they were trained at, if nothing says.", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder of a hub model, where the hub cannot be reached.", show_default=False)
    ] = None,
) -> None:
    """What of published weights a recognizer for a data set would keep, resize, make new and drop. Nothing is trained.

    Example: [bold]glyphrun transfer parseq-tiny parseq-tiny shirts[/]
    """
    from glyphrun.data.sample import iterate_samples, read_card
    from glyphrun.models.transfer import transfer_table
    from glyphrun.models.zoo import recognizer_settings
    from glyphrun.recipe import codec_for
    from glyphrun.training.start import StartSettings, start_recognizer

    with plain_errors():
        settings = recognizer_settings(recognizer, {"source": source} if source else None)
        start = StartSettings.model_validate(
            {
                "weights": weights,
                "mismatch": mismatch,
                "weights_charset": weights_charset,
                "weights_image": weights_image and tuple(weights_image.split("x")),
            }
        )
        texts = [sample.text for sample in iterate_samples(dataset) if sample.text is not None]
        codec = codec_for(settings, read_card(dataset).charset, texts)
        _, moved = start_recognizer(settings, codec, start, seed=0)
    console.print(transfer_table(moved))


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="Bundle in float32.")],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle to write.")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and activations of large layers.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16, for older GPUs.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16, for newer GPUs and AMX processors.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data set on whose val both are scored and timed; the run's, of RUN/bundle.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A smaller bundle, scored and timed beside the one it was made from.

    Example: [bold]glyphrun quantize runs/demo/bundle runs/int8 --int8[/]
    """
    from glyphrun.quantized import quantize_bundle, shown
    from glyphrun.run_folder import dataset_of

    with plain_errors():
        choices: list[tuple[Method, bool]] = [("int8", int8), ("float16", fp16), ("bfloat16", bf16)]
        methods = [method for method, asked in choices if asked]
        if len(methods) != 1:
            raise ValueError("choose one of --int8, --fp16 and --bf16")
        data = data or dataset_of(bundle.resolve().parent)
        with Console(stderr=True).status("") as status:
            comparison = quantize_bundle(bundle, out, methods[0], data, status.update)
    if as_json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False))
        return
    console.print(shown(comparison))
    for remark in comparison.remarks:
        console.print(remark, soft_wrap=True)


@adapter_app.command("merge")
def adapter_merge(
    base: Annotated[
        Path,
        typer.Argument(help="Bundle that the adapters were trained on, or RUN/trials/ID: what that trial began with."),
    ],
    adapters: Annotated[
        list[Path], typer.Argument(help="Adapter folders, such as RUN/trials/ID/adapters/step-000050.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    method: Annotated[MergeMethod, typer.Option(help="The mean of the updates, or their sum.")] = MergeMethod.average,
    weight: Annotated[
        list[float] | None, typer.Option(help="How much each adapter counts, in their order.", show_default=False)
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Where a trial's data lie now, if elsewhere.", show_default=False)
    ] = None,
) -> None:
    """One bundle out of a base and several LoRA adapters of it: of trials that began alike, or of one trial's snapshots.

    Example: [bold]glyphrun adapter merge runs/vl/trials/001-qwen2-vl-2b runs/vl/trials/001-qwen2-vl-2b/adapters/step-* --out merged[/]
    """
    from glyphrun.adapters import merge_into_bundle, merge_into_engine
    from glyphrun.sweeps.starting import start_of
    from glyphrun.sweeps.trials import is_trial

    with plain_errors():
        if is_trial(base):
            start = start_of(base, dataset)
            origin = {"trial": start.trial.id, "seed": str(start.trial.train.seed)}
            merge_into_engine(start.engine, adapters, out, start.trial.id, origin, method.value, weight)
        else:
            merge_into_bundle(base, adapters, out, method.value, weight)
    console.print(str(out), soft_wrap=True)
