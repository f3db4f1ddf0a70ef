"""Import a folder or zip of images with a table of labels: labels.tsv, labels.csv or labels.json.

The columns are `file` and `text`, and optionally `split`, and `writer` or `group`; further ones go into meta.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from glyphrun.data.importers.files import SourceFiles
from glyphrun.data.importers.rows import ImportRow
from glyphrun.data.sample import DatasetError

LABEL_FILES = ("labels.tsv", "labels.csv", "labels.json")
_COLUMNS = ("file", "text", "split", "writer", "group")
_TSV_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}

# A place ("labels.tsv line 7"), the fields there, and what is wrong with them.
Record = tuple[str, dict[str, Any], str | None]


def read_table(files: SourceFiles, split: str = "train") -> Iterator[ImportRow]:
    """The rows of the label file, in its order; `split` is for tables that have no such column.

    Raises DatasetError when there is no label file, more than one, or one that cannot be read as a table.
    """
    labels = _label_file(files)
    times: Counter[str] = Counter()
    for place, fields, fault in _records(labels, files.read(labels)):
        file, text = fields.get("file"), fields.get("text")
        if fault is None and (not isinstance(file, str) or not file):
            fault = "The file's name is empty."
        if fault is None and (not isinstance(text, str) or not text):
            fault = "The text is empty." if text in (None, "") else f"The text is {text!r}, which is no string."
        file = file if isinstance(file, str) else ""
        times[file] += 1
        # The same image may stand in several rows; each is a sample.
        sample_id = file if times[file] == 1 and file else f"{file}#{place.rsplit(' ', 1)[1]}"
        group = fields.get("group") or fields.get("writer")
        yield ImportRow(
            sample_id=sample_id,
            files=(str(PurePosixPath(labels).parent / file),) if file else (),
            text=text if isinstance(text, str) else None,
            split=str(fields.get("split") or split),
            source=place,
            group=str(group) if group else None,
            meta={key: value for key, value in fields.items() if key not in _COLUMNS},
            reason=f"{place}: {fault}" if fault else None,
        )


def _label_file(files: SourceFiles) -> str:
    # At the top, or in the one folder that an archive program put around everything.
    found = [name for name in files.names() if name.split("/")[-1] in LABEL_FILES and not name.startswith("__MACOSX")]
    shallow = [name for name in found if name.count("/") == min(other.count("/") for other in found)]
    if not shallow or shallow[0].count("/") > 1:
        raise DatasetError(f"{files.path} has no {', '.join(LABEL_FILES[:-1])} or {LABEL_FILES[-1]}; add one of them.")
    if len(shallow) > 1:
        raise DatasetError(f"{files.path} has {' and '.join(shallow)}; keep the one that holds.")
    return shallow[0]


def _records(name: str, data: bytes) -> Iterator[Record]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(f"{name} line {line} is not UTF-8; save the file as UTF-8.") from error
    if name.endswith(".json"):
        yield from _json_records(name, text)
        return
    header: list[str] | None = None
    for line, fields in _tsv_lines(text) if name.endswith(".tsv") else _csv_lines(name, text):
        place = f"{name} line {line}"
        if header is None:
            header = [field.strip() for field in fields]
            _check_header(place, header)
        elif len(fields) != len(header):
            found = dict(zip(header, fields, strict=False))
            yield place, found, f"It has {len(fields)} fields where the header has {len(header)}."
        else:
            yield place, dict(zip(header, fields, strict=True)), None
    if header is None:
        raise DatasetError(f"{name} is empty; its first line is the header `file text …`.")


def _check_header(place: str, header: list[str]) -> None:
    for column in ("file", "text"):
        if column not in header:
            raise DatasetError(f"{place} is the header and has no column {column!r}; it has {', '.join(header)}.")
    repeated = [column for column, times in Counter(header).items() if times > 1]
    if repeated:
        raise DatasetError(f"{place} has the column {repeated[0]!r} more than once.")


def _tsv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    # Quotes are characters like others here; only tab, line ends and the backslash itself are escaped.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line:
            yield number, [_unescaped(field) for field in line.split("\t")]


def _unescaped(field: str) -> str:
    return re.sub(r"\\[tnr\\]", lambda escape: _TSV_ESCAPES[escape.group()], field)


def _csv_lines(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DatasetError(f"{name} line {line}: {error}; close the quotes and double those inside.") from error
        if fields:
            yield line, fields


def _json_records(name: str, text: str) -> Iterator[Record]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{name} is not JSON: {error}.") from error
    if isinstance(rows, dict):
        rows = [{"file": file, "text": text} for file, text in rows.items()]
    if not isinstance(rows, list):
        raise DatasetError(f"{name} is a list of objects with the keys file and text, or one object of file: text.")
    for number, row in enumerate(rows, start=1):
        place = f"{name} row {number}"
        if isinstance(row, dict):
            yield place, row, None
        else:
            yield place, {}, f"It is {row!r}, which is no object."
