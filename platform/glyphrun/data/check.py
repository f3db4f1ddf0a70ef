"""Verify a data set: what the card promises, what the shards hold, and that no split leaks into another."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glyphrun.data.sample import (
    CARD_FILE,
    REJECTED_FILE,
    SCHEMA,
    DatasetCard,
    DatasetError,
    Shard,
    file_sha256,
    read_card,
    row_sample,
)
from glyphrun.images import ImageError, decode_image
from glyphrun.text import NORMAL_FORM, Codec, TextError, describe, normalise


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file and row, and a sentence."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_dataset(folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """All that is wrong with a data set; an empty list means that it is sound.

    `progress` is called with the rows read and the rows in all.
    """
    try:
        card = read_card(folder)
    except DatasetError as error:
        return [Problem(CARD_FILE, str(error))]
    return list(_problems(Path(folder), card, progress))


@dataclass
class _Seen:
    """What earlier rows held, by which repetitions and leaks are found."""

    ids: dict[str, str] = field(default_factory=dict)  # id → place
    groups: dict[str, tuple[str, str]] = field(default_factory=dict)  # group → (split, place)
    images: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # digest → (split, place)
    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0


def _problems(folder: Path, card: DatasetCard, progress: Callable[[int, int], None] | None) -> Iterator[Problem]:
    yield from _card_problems(card)
    seen = _Seen()
    total = sum(shard.rows for shard in card.shards)
    for shard in card.shards:
        yield from _shard_problems(folder, shard)
        for place, row in _rows(folder / shard.file):
            yield from _row_problems(place, row, card, seen)
            seen.rows += 1
            if progress is not None and (seen.rows % 64 == 0 or seen.rows == total):
                progress(seen.rows, total)
    for split in sorted(set(card.counts) | set(seen.counts)):
        promised, found = card.counts.get(split, 0), seen.counts[split]
        if promised != found:
            yield Problem(CARD_FILE, f"It counts {promised} samples in split {split!r}; the shards hold {found}.")
    yield from _file_problems(folder, card)


def _card_problems(card: DatasetCard) -> Iterator[Problem]:
    if card.normal_form != NORMAL_FORM:
        yield Problem(CARD_FILE, f"Its normal form is {card.normal_form!r}; only {NORMAL_FORM} is supported.")
    try:
        # An unlabelled data set has no characters.
        if card.charset:
            Codec(card.charset, max_length=1)
    except TextError as error:
        yield Problem(CARD_FILE, str(error))
    for file, times in Counter(shard.file for shard in card.shards).items():
        if times > 1:
            yield Problem(CARD_FILE, f"It lists {file} {times} times.")


def _shard_problems(folder: Path, shard: Shard) -> Iterator[Problem]:
    path = folder / shard.file
    if not path.is_file():
        yield Problem(shard.file, "The file is missing.")
        return
    if file_sha256(path) != shard.sha256:
        yield Problem(shard.file, "Its bytes are not those that the card's sha256 was made of.")
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        yield Problem(shard.file, f"It cannot be read as Parquet: {error}.")
        return
    if rows != shard.rows:
        yield Problem(shard.file, f"It has {rows} rows; the card says {shard.rows}.")
    for column in SCHEMA:
        if column.name not in schema.names:
            yield Problem(shard.file, f"It has no column {column.name!r} of type {column.type}.")
        elif schema.field(column.name).type != column.type:
            found = schema.field(column.name).type
            yield Problem(shard.file, f"Its column {column.name!r} has the type {found} instead of {column.type}.")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their places, as long as the shard is readable; why it is not was said by `_shard_problems`."""
    try:
        with pq.ParquetFile(path) as file:
            if any(
                name not in file.schema_arrow.names or file.schema_arrow.field(name).type != SCHEMA.field(name).type
                for name in SCHEMA.names
            ):
                return
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=SCHEMA.names):
                for row in batch.to_pylist():
                    yield f"{path.name} row {number} ({row['sample_id']})", row
                    number += 1
    except (OSError, pa.ArrowException):
        return


def _row_problems(place: str, row: dict[str, Any], card: DatasetCard, seen: _Seen) -> Iterator[Problem]:
    empty = [name for name in SCHEMA.names if row[name] is None and not SCHEMA.field(name).nullable]
    if empty:
        yield Problem(place, f"Its {empty[0]} is null.")
        return
    try:
        sample = row_sample(row)
    except ValueError as error:
        yield Problem(place, f"Its meta is not JSON: {error}.")
        sample = row_sample({**row, "meta": json.dumps({})})
    earlier = seen.ids.setdefault(sample.sample_id, place)
    if earlier != place:
        yield Problem(place, f"Its sample_id is also that of {earlier}.")
    seen.counts[sample.split] += 1
    yield from _text_problems(place, sample.text, card.charset)
    if not sample.frames:
        yield Problem(place, "It has no frames.")
    for group in sample.groups:
        split, other = seen.groups.setdefault(group, (sample.split, place))
        if split != sample.split:
            yield Problem(place, f"Its group {group!r} is in split {sample.split!r} and, at {other}, in {split!r}.")
    for index, frame in enumerate(sample.frames):
        try:
            decode_image(frame or b"", name=f"Frame {index}")
        except ImageError as error:
            yield Problem(place, str(error))
            continue
        digest = hashlib.sha256(frame).digest()
        split, other = seen.images.setdefault(digest, (sample.split, place))
        if split != sample.split:
            yield Problem(
                place, f"Frame {index} in split {sample.split!r} is the same file as one at {other} in {split!r}."
            )


def _text_problems(place: str, text: str | None, charset: str) -> Iterator[Problem]:
    if text is None:
        return
    if normalise(text) != text:
        yield Problem(place, f"Its text {text!r} is not in the normal form {NORMAL_FORM}.")
    for character in sorted(set(normalise(text)) - set(charset)):
        yield Problem(place, f"Its text {text!r} holds {describe(character)}, which the card's charset lacks.")


def _file_problems(folder: Path, card: DatasetCard) -> Iterator[Problem]:
    listed = {shard.file for shard in card.shards} | {REJECTED_FILE}
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in listed:
            yield Problem(path.name, "The card does not list this file.")
    path = folder / REJECTED_FILE
    try:
        rejected = pq.read_metadata(path).num_rows if path.exists() else 0
    except (OSError, pa.ArrowException) as error:
        yield Problem(path.name, f"It cannot be read as Parquet: {error}.")
        return
    if rejected != card.rejected:
        yield Problem(CARD_FILE, f"It counts {card.rejected} rejected rows; {REJECTED_FILE} has {rejected}.")
