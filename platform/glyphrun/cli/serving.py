"""The verb that finds out how a model should be served."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from glyphrun.cli.options import REGISTRY, ModelArgument, RegistryOption, console, plain_errors, progress_bar

if TYPE_CHECKING:
    from glyphrun_serve.tuning import BatchPoint, Curve

TIMED_ITEMS = 64  # of a data set, as many as the largest batch that is tried by default

app = typer.Typer()


class Device(StrEnum):
    """What a replica computes on."""

    cpu = "cpu"
    cuda = "cuda"


@app.command("tune-serving")
def tune_serving(
    model: ModelArgument,
    slo_ms: Annotated[
        float,
        typer.Option(
            help="Milliseconds within which 99 % of items are to be answered, HTTP and hops not counted.", min=0.001
        ),
    ],
    device: Annotated[
        Device | None, typer.Option(help="What replicas compute on; the GPU where there is one.", show_default=False)
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Serve config to start from; serve/configs/local.yaml, or t4.yaml for cuda.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Config to write; MODEL.serve.yaml by default.", show_default=False)
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a tracklet.", min=1)] = 8,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set whose test items are read; noise by default.", show_default=False)
    ] = None,
    largest: Annotated[int, typer.Option(help="Largest batch to measure.", min=1)] = 64,
    peak: Annotated[
        float | None,
        typer.Option(help="Items a second at most; as many replicas as read them.", min=0, show_default=False),
    ] = None,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Measure how long batches take on a replica's own path, and write a Serve config that keeps a promised latency.

    Batch size and wait, ongoing and queued requests and the range of replicas follow from the curve by the rules that the
    config states; the curve is written beside it. A promise that no batch size keeps is refused.

    Example: [bold]glyphrun tune-serving runs/demo/bundle --slo-ms 200 --device cpu[/]
    """
    import torch

    from glyphrun.device import default_device
    from glyphrun.evaluation.timed_items import noise_items, timed_items
    from glyphrun.registry import Registry
    from glyphrun.report.batch_curve import write_curve_page
    from glyphrun_serve.tuned_config import measured_under, remarks, write_tuned
    from glyphrun_serve.tuning import sizes_up_to, tune
    from glyphrun_serve.tuning_base import CONFIGS, measure, read_base

    with plain_errors():
        chosen = torch.device(device) if device else default_device()
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no GPU here: run it where replicas will run, or choose --device cpu")
        start = base or CONFIGS / ("t4.yaml" if chosen.type == "cuda" else "local.yaml")
        found = read_base(start, Registry(registry).resolve(model), chosen, frames)
        items = (
            timed_items(dataset, "test", TIMED_ITEMS, frames)
            if dataset is not None
            else noise_items(found.recognizers[0].processor, frames)
        )
        sizes = sizes_up_to(largest)
        with progress_bar("batches") as progress:
            done = 0

            def advance(name: str, size: int) -> None:
                nonlocal done
                done += 1
                progress(done, len(sizes) * len(found.recognizers))

            curves = measure(found, chosen, sizes, slo_ms, items, advance)
        _show(curves)
        tuning = tune(curves, slo_ms, found.bounds(), peak)
        under = measured_under(found, model, chosen, slo_ms, str(dataset or "noise"), frames, curves)
        target = out or _beside(model)
        curve = write_tuned(target, found, under, tuning)
        told = (*tuning.told(), *remarks(found, curves, tuning))
        page = curve.with_suffix(".html")
        write_curve_page(
            {name: [_row(point) for point in curves[name].points] for name in curves},
            page,
            title=model,
            slo_ms=slo_ms,
            chosen=tuning.most,
            told=told,
            under=f"{under.device}, tracklets of {frames} frames ({under.items}), base {under.base}",
        )
    for line in (*told, f"{target}  (the curve: {curve.name}, {page.name})"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _beside(model: str) -> Path:
    """Beside a bundle's folder, which is not written into; for a name in the registry, in the working folder."""
    folder = Path(model)
    named = folder.resolve() if folder.is_dir() else Path(model.replace("@", "-"))
    return named.with_name(f"{named.name}.serve.yaml")


def _row(point: BatchPoint) -> dict[str, float]:
    return {**point.model_dump(), "worst_ms": point.worst_ms, "items_per_s": point.items_per_s}


def _show(curves: Mapping[str, Curve]) -> None:
    for name, curve in curves.items():
        table = Table(
            "batch", "decode", "read", "p99", "answer", "p99", "items/s", "measured", title=f"{name}, ms a batch"
        )
        for point in curve.points:
            times = (
                point.decode_ms,
                point.read_ms,
                point.read_p99_ms,
                point.answer_ms,
                point.answer_p99_ms,
                point.items_per_s,
            )
            table.add_row(str(point.batch), *(f"{value:.1f}" for value in times), str(point.repeats))
        console.print(table)
        if curve.ended:
            console.print(
                f"{name}: no larger batches, for {curve.ended}", soft_wrap=True, highlight=False, markup=False
            )
