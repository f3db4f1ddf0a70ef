"""What every importer yields, and the one way in which such rows become samples or rejected rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from glyphrun.data.importers.files import FileError, SourceFiles
from glyphrun.data.sample import REJECTED_SCHEMA
from glyphrun.images import ImageError, decode_image
from glyphrun.text import Codec, TextError, normalise

IMPORT_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("files", pa.list_(pa.string())),
        pa.field("text", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        pa.field("source", pa.string()),
        pa.field("meta", pa.string()),
        pa.field("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class ImportRow:
    """One sample as a source describes it, its frames still files; a reason says why it cannot be one."""

    sample_id: str
    files: tuple[str, ...]
    text: str | None
    split: str
    source: str  # the file and line that said so
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def to_arrow(self) -> dict[str, Any]:
        """The row for IMPORT_SCHEMA."""
        return {**asdict(self), "files": list(self.files), "meta": json.dumps(self.meta, ensure_ascii=False)}


def load_rows(rows: pa.Table, source: str, charset: str | None, max_length: int) -> pa.Table:
    """Read and check the frames and texts of IMPORT_SCHEMA rows; returns rows of REJECTED_SCHEMA.

    A tracklet keeps its good frames; those that cannot be read go into a rejected row of their own.
    """
    with SourceFiles(source) as files:
        loaded = [made for row in rows.to_pylist() for made in _load(row, files, charset, max_length)]
    return pa.Table.from_pylist(loaded, schema=REJECTED_SCHEMA)


def _load(row: dict[str, Any], files: SourceFiles, charset: str | None, max_length: int) -> Iterator[dict[str, Any]]:
    names, meta = row.pop("files"), json.loads(row["meta"])
    good: list[bytes] = []
    bad: list[bytes] = []
    faults: list[str] = []
    for name in names:
        data = b""
        try:
            data = files.read(name)
            decode_image(data, name=name)
            good.append(data)
        except (FileError, ImageError) as error:
            faults.append(str(error))
            bad.append(data)
    text = row["text"]
    reason = row["reason"] or _text_fault(text, charset, max_length)
    if text is not None and normalise(text) != text:
        meta["text_as_given"] = text
        row["text"] = normalise(text)
    row["meta"] = json.dumps(meta, ensure_ascii=False, sort_keys=True)
    if reason or not good:
        reason = " ".join(filter(None, [reason, *faults])) or "It has no frames."
        # An absent file has no bytes to keep.
        yield {**row, "frames": [data for data in good + bad if data], "reason": reason}
        return
    yield {**row, "frames": good, "reason": None}
    if faults:
        yield {**row, "frames": [data for data in bad if data], "reason": " ".join(faults)}


def _text_fault(text: str | None, charset: str | None, max_length: int) -> str | None:
    if text is None:
        return None
    length = len(normalise(text))
    if length > max_length:
        return f"The text has {length} characters; the limit is {max_length}."
    if charset is not None:
        try:
            Codec(charset, max_length).encode(text)
        except TextError as error:
            return str(error)
    return None
