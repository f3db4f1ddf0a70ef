"""Texts and word lists as files: UTF-8 with or without a byte order mark, any line ends, in the one normal form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from glyphrun.text import normalise


class CorpusError(ValueError):
    """A text or a word list cannot be used; the message names the file and the row."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, normalised, one in memory at a time. Raises CorpusError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if text := normalise(line).strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason}): convert it first") from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None


def read_counts(path: Path) -> Iterator[tuple[str, int]]:
    """Word and count of each row of a list; a row without a tab counts once. Raises CorpusError naming the row."""
    for number, line in read_lines(path):
        word, tab, count = line.rpartition("\t")
        if not tab:
            yield line, 1
            continue
        word = word.strip()
        if not count.strip().isdecimal() or int(count) < 1 or not word:
            raise CorpusError(f"{path}, row {number} is {line!r}: a row is a word, a tab and a whole number from 1 on")
        yield word, int(count)


def read_weighted(path: Path) -> Iterator[tuple[str, int]]:
    """The texts of a file with how often each counts: a word list if its name ends in .tsv, else a text of lines."""
    if path.suffix == ".tsv":
        yield from read_counts(path)
    else:
        yield from ((line, 1) for _, line in read_lines(path))


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write lines aside and put them in their place once all are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
