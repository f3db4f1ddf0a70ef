"""Decode sweeps: one encoding of a data set, read under many settings as Tune trials, without training again.

Times are those of batches on this machine: encoding as the driver does it, with all its threads, and decoding in a trial
with one, while other trials may run beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from glyphrun.data.sample import dataset_hash
from glyphrun.evaluation.metrics import Unit
from glyphrun.evaluation.significance import paired_bootstrap
from glyphrun.sweeps.encode import Split, encode_split
from glyphrun.sweeps.encodings import Encoding
from glyphrun.sweeps.families import read_families
from glyphrun.sweeps.points import DecodePoint, distinct_names, greedy_of
from glyphrun.sweeps.readers import digests_of
from glyphrun.sweeps.reading import PointReader
from glyphrun.sweeps.trials import write_json

MEMORY_MIB = 1024
UNSHOWN = ("readings", "errors")


def decode_sweep(
    points: Sequence[DecodePoint],
    readers: Mapping[str, Path],
    dataset: Path,
    split: str,
    out: Path,
    *,
    memory_mib: int = MEMORY_MIB,
    limit: int | None = None,
    seed: int = 0,
    unit: Unit = "characters",
    on_row: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Read a split under every point, each reader's frames encoded once, and score each against greedy reading.

    Rows that ``out`` holds are not read again, so a sweep that was killed goes on. Encodings of more than memory_mib lie
    in files below ``out`` while it runs. limit: as many items, drawn by the seed. unit: what CER counts. Needs a Ray that is running. Returns the
    rows, the lowest CER first; on_row is told how many are done, of how many.
    """
    out = out.absolute()
    folder = out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    weights = digests_of(readers)
    data = f"{dataset_hash(dataset)}/{split}/{limit}/{seed if limit else 0}"
    if unit != "characters":  # rows of characters keep the keys that they have always had
        data += f"/{unit}"
    wanted = {point.key(weights, data): point for point in (*points, *map(greedy_of, points))}
    new = {key: point for key, point in wanted.items() if not (folder / f"{key}.json").exists()}
    done = len(wanted) - len(new)

    def told(more: int = 1) -> None:
        nonlocal done
        done += more
        if on_row:
            on_row(done, len(wanted))

    told(0)
    if new:
        files = out / "encodings"
        try:
            asked = Split(dataset, split, limit, seed)
            encodings, truths = encode_split(new.values(), readers, asked, memory_mib, files)
            paths = {name: reader.absolute() for name, reader in readers.items()}
            reader = partial(PointReader, paths, partial(_fetched, encodings), truths, unit)
            read_families(new, reader, folder, out / "tune", told)
        finally:
            shutil.rmtree(files, ignore_errors=True)
    rows = {key: json.loads((folder / f"{key}.json").read_text(encoding="utf-8")) for key in wanted}
    names = distinct_names(list(wanted.values()))
    compared = [
        {**_compared(rows[key], rows[greedy_of(point).key(weights, data)], seed), "name": name}
        for (key, point), name in zip(wanted.items(), names, strict=True)
    ]
    compared.sort(key=lambda row: (row["cer"] is None, row["cer"], -row["exact"], row["ms"]))
    write_json(
        out / "decode.json", {"schema": 1, "dataset": str(dataset), "split": split, "cer_unit": unit, "rows": compared}
    )
    return compared


def _fetched(references: Mapping[str, Any], name: str) -> Encoding:
    encoding: Encoding = ray.get(references[name])
    return encoding


def _compared(row: dict[str, Any], greedy: dict[str, Any], seed: int) -> dict[str, Any]:
    """The row with its paired difference from greedy reading, without what was read."""
    own, base = row["errors"], greedy["errors"]
    exact = paired_bootstrap(own["wrong"], base["wrong"], seed=seed)
    cer = (
        paired_bootstrap(own["edits"], base["edits"], own["characters"], seed=seed) if sum(own["characters"]) else None
    )
    return {
        **{key: value for key, value in row.items() if key not in UNSHOWN},
        "seconds_per_item": row["ms"] / 1e3,
        "against_greedy": {
            "exact": {"difference": -exact.difference, "ci": [-exact.high, -exact.low], "p": exact.p},
            "cer": cer and {"difference": cer.difference, "ci": [cer.low, cer.high], "p": cer.p},
        },
    }
