"""Verbs that try ways of decoding on what was trained already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from glyphrun.cli.options import GraphemesOption, console, plain_errors, progress_bar

if TYPE_CHECKING:
    from glyphrun.evaluation.metrics import Unit

app = typer.Typer()

Sources = Annotated[
    list[str],
    typer.Argument(help="Bundles, finished runs or their URIs, and last the folder of a data set.", show_default=False),
]
SplitOption = Annotated[str, typer.Option(help="Split to read; val, unless all choices are made.")]


@app.command("decode-sweep")
def decode_sweep(
    sources: Sources,
    settings: Annotated[Path, typer.Option(help="File of what is crossed.")],
    out: Annotated[Path, typer.Option(help="Where rows are kept, and found again.")] = Path("runs/decode"),
    split: SplitOption = "val",
    memory_mib: Annotated[int, typer.Option(help="Encodings of more lie in files.", min=0)] = 1024,
    by_graphemes: GraphemesOption = False,
) -> None:
    """Read a split under crossed decode settings; every frame is encoded once and nothing is trained again.

    Example: [bold]glyphrun decode-sweep runs/demo runs/demo/data --settings experiments/decode.yaml[/]
    """
    from glyphrun.mirror import CHECKPOINT, fetch_run
    from glyphrun.report.decoding import write_decode_page
    from glyphrun.sweeps.decode_settings import load_space, plan_points
    from glyphrun.sweeps.readers import own_of, readers_of

    with plain_errors():
        dataset = Path(sources[-1])
        readers = readers_of([fetch_run(source, without=(CHECKPOINT,)) for source in sources[:-1]])
        space = load_space(settings)
        points, left_out = plan_points(space, *own_of(readers))
        rows = _read(points, readers, dataset, split, out, memory_mib=memory_mib, unit=_unit(by_graphemes))
        page = out / "decode.html"
        write_decode_page(rows, page, title=_title(dataset, split, by_graphemes))
    _show(rows, page)
    if left_out:
        console.print(f"{left_out} combinations contradict themselves and were left out")


@app.command()
def validate(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("validation.json"),
    split: SplitOption = "val",
    quick: Annotated[bool, typer.Option("--quick", help="Do beams and votes help? 50 items.")] = False,
    budget_ms: Annotated[float | None, typer.Option(help="Latency that an item may take.", show_default=False)] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Word list.", show_default=False)] = None,
    confusions: Annotated[Path | None, typer.Option(help="Learnt confusions.", show_default=False)] = None,
    lm: Annotated[Path | None, typer.Option(help="Language model.", show_default=False)] = None,
    by_graphemes: GraphemesOption = False,
) -> None:
    """Every lever of inference on the same items, alone and together, with a recommendation for three needs.

    Example: [bold]glyphrun validate runs/demo/bundle runs/demo/data --quick[/]
    """
    from glyphrun.evaluation.recommend import recommend
    from glyphrun.mirror import CHECKPOINT, fetch_run
    from glyphrun.report.decoding import write_decode_page
    from glyphrun.sweeps.readers import readers_of
    from glyphrun.sweeps.suite import QUICK_ITEMS, available_corrections, has_tracklets, suite_points
    from glyphrun.sweeps.trials import write_json

    with plain_errors():
        if out.suffix != ".json":
            raise ValueError(f"--out {out}: it must end in .json; its rows go to a folder of the name before that")
        dataset = Path(sources[-1])
        readers = readers_of([fetch_run(source, without=(CHECKPOINT,)) for source in sources[:-1]])
        corrections = available_corrections(lexicon, confusions, lm)
        tracklets = not quick and has_tracklets(dataset, split)
        points, without = suite_points(readers, corrections, tracklets=tracklets, quick=quick)
        limit = QUICK_ITEMS if quick else None
        rows = _read(points, readers, dataset, split, out.with_suffix(""), limit=limit, unit=_unit(by_graphemes))
        advice = recommend(rows, budget_ms)
        report = {
            "schema": 1,
            "split": split,
            "cer_unit": _unit(by_graphemes),
            "methods": rows,
            "left_out": without,
            "recommendations": [asdict(one) for one in advice],
        }
        write_json(out, report)
        page = out.with_suffix(".html")
        write_decode_page(rows, page, title=_title(dataset, split, by_graphemes), advice=advice)
    _show(rows, page)
    for sentence in without:
        console.print(f"left out: {sentence}", soft_wrap=True)
    for one in advice:
        console.print(f"[bold]{one.need}[/]: {one.name or 'nothing'}. {one.sentence}", soft_wrap=True)
    if quick:
        together = [row for row in rows if row["point"]["ensemble_vote"]]
        beams = [row for row in rows if row["point"]["decode"]["search"] == "beam" and row not in together]
        for kind, found in (("beam", beams), ("ensemble", together)):
            if found:
                console.print(_answer(kind, found), soft_wrap=True)


def _read(
    points: Sequence[Any], readers: Mapping[str, Path], dataset: Path, split: str, out: Path, **options: Any
) -> list[dict[str, Any]]:
    from glyphrun.cluster import ray_for_command
    from glyphrun.sweeps.decode import decode_sweep

    with ray_for_command(), progress_bar("settings") as progress:
        told: Callable[[int, int], None] = progress
        return decode_sweep(points, readers, dataset.absolute(), split, out, on_row=told, **options)


def _unit(by_graphemes: bool) -> Unit:
    return "graphemes" if by_graphemes else "characters"


def _title(dataset: Path, split: str, by_graphemes: bool) -> str:
    return f"{dataset.resolve().name}, {split}{', CER of grapheme clusters' if by_graphemes else ''}"


def _show(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold")
    for heading in ("CER", "WER", "exact", "ms", "images/s", "CER against greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cer = row["against_greedy"]["cer"]
        difference = (
            ""
            if cer is None
            else f"{100 * cer['difference']:+.2f} ({100 * cer['ci'][0]:+.2f} to {100 * cer['ci'][1]:+.2f})"
        )
        rates = ["–" if row[key] is None else f"{100 * row[key]:.2f}" for key in ("cer", "wer", "exact")]
        table.add_row(row["name"], *rates, f"{row['ms']:.2f}", f"{row['images_per_s']:.0f}", difference)
    console.print(table)
    console.print(str(out), soft_wrap=True)


def _answer(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    measured = [row for row in rows if row["cer"] is not None]
    if not measured:
        return f"Does the {kind} help? The texts have no characters to tell by."
    best = min(measured, key=lambda row: row["cer"])
    cer = best["against_greedy"]["cer"]
    low, high = (100 * end for end in cer["ci"])
    verdict = "helps" if high < 0 else "does not help for sure" if cer["difference"] < 0 else "does not help"
    return (
        f"Does the {kind} help? It {verdict}: {best['name']} changes CER by {100 * cer['difference']:+.2f} points "
        f"({low:+.2f} to {high:+.2f}) on {best['n']} items."
    )
