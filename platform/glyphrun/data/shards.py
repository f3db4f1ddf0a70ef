"""Writing a data set: shards beside the target, then one rename, so that nothing half-written is ever seen."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glyphrun.data.sample import (
    CARD_FILE,
    REJECTED_FILE,
    REJECTED_SCHEMA,
    SCHEMA,
    DatasetCard,
    DatasetError,
    Sample,
    Shard,
    file_sha256,
    samples_table,
    write_card,
)

# Small enough that a handful of readers share a small data set, large enough that a shard is one disk read.
ROWS_PER_SHARD = 1024
ROWS_PER_GROUP = 128


class DatasetWriter:
    """Collects rows in the order given and publishes them as a data set when the `with` block ends well.

    The same rows in the same order give the same bytes, however they were divided between calls.
    Raises DatasetError when the target exists and `overwrite` is false, or is a folder of something else.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        licence: str,
        description: str,
        charset: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.card: DatasetCard | None = None
        self._name, self._licence, self._description = name, licence, description
        self._charset = charset
        self._seen_characters: set[str] = set()
        self._ids: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._shards: list[Shard] = []
        self._pending: list[pa.Table] = []
        self._rejected: list[pa.Table] = []
        self._aside = self.folder.with_name(f".{self.folder.name}.partial-{os.getpid()}")
        self._check_target(overwrite)

    def _check_target(self, overwrite: bool) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder} is a file; name a folder for the data set.")
        if not any(self.folder.iterdir()):
            return
        if not (self.folder / CARD_FILE).exists():
            raise DatasetError(f"{self.folder} holds something other than a data set; name another folder.")
        if not overwrite:
            raise DatasetError(f"{self.folder} already holds a data set; name another folder or ask to overwrite it.")

    def __enter__(self) -> Self:
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows of SCHEMA, or of REJECTED_SCHEMA, where a row with a reason is kept among the rejected."""
        if "reason" in table.column_names:
            refused = table.filter(pc.is_valid(table["reason"]))
            if refused.num_rows:
                self._rejected.append(refused.select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA))
            table = table.filter(pc.is_null(table["reason"]))
        table = self._unique(table.select(SCHEMA.names).cast(SCHEMA))
        for text in table["text"].to_pylist():
            self._seen_characters.update(text or "")
        self._counts.update(table["split"].to_pylist())
        self._pending.append(table)
        while sum(part.num_rows for part in self._pending) >= ROWS_PER_SHARD:
            rows = pa.concat_tables(self._pending)
            self._pending = [rows.slice(ROWS_PER_SHARD)]
            self._write_shard(rows.slice(0, ROWS_PER_SHARD))

    def _unique(self, table: pa.Table) -> pa.Table:
        fresh: list[bool] = []
        for sample_id in table["sample_id"].to_pylist():
            fresh.append(sample_id not in self._ids)
            self._ids.add(sample_id)
        if all(fresh):
            return table
        repeated = table.filter(pa.array([not new for new in fresh]))
        reason = pa.array(["This sample_id was used by an earlier row."] * repeated.num_rows, pa.string())
        self._rejected.append(repeated.append_column("reason", reason).cast(REJECTED_SCHEMA))
        return table.filter(pa.array(fresh))

    def _write_shard(self, rows: pa.Table) -> None:
        path = self._aside / f"part-{len(self._shards):05d}.parquet"
        # The chunks' borders would show in the file's pages, and so in its hash.
        pq.write_table(rows.combine_chunks(), path, row_group_size=ROWS_PER_GROUP, compression="zstd")
        self._shards.append(Shard(file=path.name, rows=rows.num_rows, sha256=file_sha256(path)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _publish(self) -> None:
        rest = pa.concat_tables(self._pending) if self._pending else SCHEMA.empty_table()
        if rest.num_rows or not self._shards:
            self._write_shard(rest)
        if self._rejected:
            pq.write_table(pa.concat_tables(self._rejected).combine_chunks(), self._aside / REJECTED_FILE)
        charset = "".join(sorted(self._seen_characters)) if self._charset is None else self._charset
        self.card = DatasetCard(
            name=self._name,
            licence=self._licence,
            description=self._description,
            charset=charset,
            counts=dict(sorted(self._counts.items())),
            rejected=sum(table.num_rows for table in self._rejected),
            shards=tuple(self._shards),
        )
        write_card(self._aside, self.card)
        replaced = self.folder.with_name(f".{self.folder.name}.replaced-{os.getpid()}")
        if self.folder.exists():
            os.replace(self.folder, replaced)
        os.replace(self._aside, self.folder)
        shutil.rmtree(replaced, ignore_errors=True)


def write_samples(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    *,
    name: str,
    licence: str,
    description: str,
    charset: str | None = None,
    overwrite: bool = False,
) -> DatasetCard:
    """Write samples that this process holds or makes; without a charset, it is the set of characters in the texts."""
    with DatasetWriter(
        folder, name=name, licence=licence, description=description, charset=charset, overwrite=overwrite
    ) as writer:
        for sample in samples:
            writer.write(samples_table([sample]))
    assert writer.card is not None
    return writer.card
