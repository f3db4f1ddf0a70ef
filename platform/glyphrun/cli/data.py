"""``glyphrun data``: make, import, check and look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glyphrun.cli.options import (
    DatasetArgument,
    console,
    plain_errors,
    progress_bar,
)

app = typer.Typer(help="Make, import, check and look at data sets.", no_args_is_help=True)


@app.command("simulate")
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


@app.command("import")
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
    import glyphrun.data.stream  # noqa: F401  (Ray Data sets its log up when it is imported, and is quieted after that)
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


@app.command("check")
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


@app.command("show")
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
