"""The files of a folder or of a zip, read by their names."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from glyphrun.data.sample import DatasetError

MAX_FILE_BYTES = 200_000_000


class FileError(ValueError):
    """One file cannot be had; the message says why."""


class SourceFiles:
    """A folder or a zip file as a tree of names with forward slashes; used in a `with` block.

    Raises DatasetError when it is neither.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.path = Path(source).absolute()
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            return
        if not self.path.exists():
            raise DatasetError(f"{self.path} does not exist; name a folder or a zip file.")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DatasetError(f"{self.path} is neither a folder nor a readable zip file: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._zip is not None:
            self._zip.close()

    def names(self) -> Iterator[str]:
        """The names of all files, in alphabetical order."""
        if self._zip is not None:
            yield from sorted(info.filename for info in self._zip.infolist() if not info.is_dir())
        else:
            paths = (Path(folder) / file for folder, _, files in os.walk(self.path) for file in files)
            yield from sorted(path.relative_to(self.path).as_posix() for path in paths)

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises FileError when it is absent, too large, damaged or outside the source."""
        pure = PurePosixPath(name)
        # A label file comes from strangers: it must not name files elsewhere on this machine.
        if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
            raise FileError(f"{name!r} is not a name inside {self.path.name}.")
        try:
            size = self._zip.getinfo(str(pure)).file_size if self._zip else (self.path / pure).stat().st_size
            if size > MAX_FILE_BYTES:
                raise FileError(f"{name} has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}.")
            return self._zip.read(str(pure)) if self._zip else (self.path / pure).read_bytes()
        except (KeyError, FileNotFoundError, NotADirectoryError):
            raise FileError(f"{name} is missing from {self.path.name}.") from None
        # Besides damage: zipfile says RuntimeError of an encrypted file, NotImplementedError of an unknown compression.
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
            raise FileError(f"{name} cannot be read: {error}.") from error
