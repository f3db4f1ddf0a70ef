"""Importers: a module for each layout in which labelled images come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from glyphrun.data.importers.files import SourceFiles
from glyphrun.data.importers.rows import IMPORT_SCHEMA, ImportRow, load_rows
from glyphrun.data.importers.soccernet import read_soccernet
from glyphrun.data.importers.table import read_table
from glyphrun.data.sample import DatasetCard, DatasetError

IMPORTERS: dict[str, Callable[[SourceFiles, str], Iterator[ImportRow]]] = {
    "table": read_table,
    "soccernet": read_soccernet,
}


def import_dataset(
    format: str,
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    licence: str = "not stated",
    description: str = "",
    charset: str | None = None,
    max_length: int = 256,
    split: str = "train",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetCard:
    """Import a folder or zip as a data set; the card says how many rows came in each split and how many were rejected.

    A row that cannot be a sample (its image missing or unreadable, its text empty, longer than `max_length` or
    outside `charset`) goes to rejected.parquet with the reason and its place, and nothing else is lost. Without a
    charset, it is the set of characters in the texts. `split` is for sources that name none.
    Raises DatasetError when the source as a whole cannot be read or the target must not be written.
    """
    from glyphrun.data.stream import load_dataset  # here: Ray takes two seconds to import

    if format not in IMPORTERS:
        raise DatasetError(f"There is no importer {format!r}; there are {', '.join(IMPORTERS)}.")
    path = Path(source).absolute()
    with SourceFiles(path) as files:
        rows = [row.to_arrow() for row in IMPORTERS[format](files, split)]
    return load_dataset(
        rows,
        IMPORT_SCHEMA,
        partial(load_rows, source=str(path), charset=charset, max_length=max_length),
        out_dir,
        name=path.stem if name is None else name,
        licence=licence,
        description=description or f"Imported from {path.name} ({format}).",
        charset=charset,
        overwrite=overwrite,
        progress=progress,
    )
