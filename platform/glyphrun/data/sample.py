"""The data set format: a folder of Parquet shards and a card, dataset.json.

A sample is one text with the frames that show it: one frame for a still image, several for a tracklet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from glyphrun.text import NORMAL_FORM

SCHEMA_VERSION = 1
CARD_FILE = "dataset.json"
REJECTED_FILE = "rejected.parquet"
GROUP_SEPARATOR = " + "

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("frames", pa.list_(pa.binary()), nullable=False),
        pa.field("text", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)

# Rows that did not become samples, with all that was known of them and the reason why.
REJECTED_SCHEMA = pa.schema([*SCHEMA, pa.field("reason", pa.string())])


class DatasetError(ValueError):
    """A data set cannot be read or written; the message names the file and says what to do."""


@dataclass(frozen=True)
class Sample:
    """One text and the encoded frames that show it.

    `text` is None where no label exists and "" where the label says that nothing can be read. `group` is what must
    not be divided between splits: a writer, a match, a source image; several are joined by " + ".
    """

    sample_id: str
    frames: tuple[bytes, ...]
    text: str | None
    split: str
    group: str | None = None
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.group.split(GROUP_SEPARATOR)) if self.group else ()


class Shard(BaseModel):
    """One Parquet file of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A plain name: a card must not be able to point outside its folder.
    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*\.parquet$")]
    rows: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class DatasetCard(BaseModel):
    """dataset.json: what a data set is, how many samples each split has, and the hash of every shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    licence: str
    description: str
    charset: str
    normal_form: str = NORMAL_FORM
    schema_version: int = SCHEMA_VERSION
    counts: dict[str, int]
    rejected: int = 0
    shards: tuple[Shard, ...]


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """The samples as an Arrow table of SCHEMA."""
    return pa.Table.from_pylist([sample_row(sample) for sample in samples], schema=SCHEMA)


def sample_row(sample: Sample) -> dict[str, Any]:
    """The sample as a row of SCHEMA, its meta as a JSON string with sorted keys."""
    return {
        "sample_id": sample.sample_id,
        "frames": list(sample.frames),
        "text": sample.text,
        "split": sample.split,
        "group": sample.group,
        "source": sample.source,
        "meta": json.dumps(sample.meta, ensure_ascii=False, sort_keys=True),
    }


def row_sample(row: dict[str, Any]) -> Sample:
    """The sample in a row of SCHEMA."""
    fields = {name: row[name] for name in SCHEMA.names}
    return Sample(**{**fields, "frames": tuple(row["frames"]), "meta": json.loads(row["meta"])})


def read_card(folder: str | os.PathLike[str]) -> DatasetCard:
    """Read dataset.json; raises DatasetError when it is absent, not a card or of a newer schema."""
    path = Path(folder) / CARD_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist; name a folder written by `glyphrun data`.") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}") from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise DatasetError(f"{path} has schema version {version}; this program reads version {SCHEMA_VERSION}.")
    try:
        return DatasetCard.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{path}: {place}: {first['msg']}.") from error


def write_card(folder: str | os.PathLike[str], card: DatasetCard) -> None:
    """Write dataset.json at once: it exists whole or not at all."""
    path = Path(folder) / CARD_FILE
    aside = path.with_suffix(".json.partial")
    aside.write_text(json.dumps(card.model_dump(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def iterate_samples(folder: str | os.PathLike[str], split: str | None = None) -> Iterator[Sample]:
    """Stream the samples in the card's order, all of them or one split's; a few rows are in memory at a time.

    Raises DatasetError when a shard is absent or damaged, or when the data set has no such split.
    """
    card = read_card(folder)
    if split is not None and split not in card.counts:
        raise DatasetError(f"{folder} has no split {split!r}; it has {', '.join(card.counts) or 'none'}.")
    for shard in card.shards:
        path = Path(folder) / shard.file
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=64, columns=SCHEMA.names):
                    for row in batch.to_pylist():
                        if split is None or row["split"] == split:
                            yield row_sample(row)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path} cannot be read: {error}. Run `glyphrun data check {folder}`.") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_hash(folder: str | os.PathLike[str]) -> str:
    """One SHA-256 for the whole data set, of the shards' hashes in order."""
    digest = hashlib.sha256()
    for shard in read_card(folder).shards:
        digest.update(bytes.fromhex(shard.sha256))
    return digest.hexdigest()
