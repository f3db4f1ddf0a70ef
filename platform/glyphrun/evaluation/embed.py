"""Encoder features of a whole data set, as a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from glyphrun.data.sample import iterate_samples
from glyphrun.ensemble import Reader

ITEMS_AT_ONCE = 64
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("pooled", pa.list_(pa.float32())),
        ("patches", pa.list_(pa.list_(pa.list_(pa.float32())))),
    ]
)


def embed_dataset(reader: Reader, dataset: Path, out: Path, progress: Callable[[int], None] | None = None) -> int:
    """Write a row a sample, of all splits: its pooled feature and, for each frame, a feature for each patch.

    Columns: sample_id, split, text, pooled (D), patches (frames, S, D), float32. Returns how many rows there are. The
    file appears when it is whole. Raises OSError if it exists, ImageError naming a sample that cannot be decoded.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already: choose another name or remove it")
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    rows = 0
    try:
        with pq.ParquetWriter(aside, SCHEMA) as writer:
            for batch in _batches(reader, dataset):
                writer.write_batch(batch)
                rows += len(batch)
                if progress:
                    progress(len(batch))
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    return rows


def _batches(reader: Reader, dataset: Path) -> Iterator[pa.RecordBatch]:
    rest = iterate_samples(dataset)
    while samples := list(islice(rest, ITEMS_AT_ONCE)):
        found = reader.embed([reader.prepare(sample.frames, name=sample.sample_id) for sample in samples])
        yield pa.RecordBatch.from_pylist(
            [
                {
                    "sample_id": sample.sample_id,
                    "split": sample.split,
                    "text": sample.text,
                    "pooled": embedding.pooled,
                    "patches": [list(frame) for frame in embedding.frames],
                }
                for sample, embedding in zip(samples, found, strict=True)
            ],
            schema=SCHEMA,
        )
