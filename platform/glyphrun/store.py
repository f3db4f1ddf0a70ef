"""Files on any pyarrow file system, a local folder or a bucket, with no more asked of it than object stores promise.

A whole object appears at once, and what was written or deleted is listed so at once (Amazon S3 does both for every object
since December 2020). Nothing is renamed in a bucket, overwritten, or read, changed and written back.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

CHUNK = 1 << 20
CLAIM_WITHIN_S = 60.0
LONGEST_PAUSE_S = 1.0


class StoreError(ValueError):
    """A place that cannot be used as it was named or asked for; the message says what to do."""


@dataclass(frozen=True)
class Store:
    """All files under one place. Paths are relative to it, with slashes; those that start with a dot are not listed."""

    files: FileSystem
    root: str

    def place(self, path: str = "") -> str:
        """A path as a person is shown it: without credentials or options of the URI."""
        scheme = "" if self.is_local else f"{self.files.type_name}://"
        return f"{scheme}{self.root}/{path}".rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    def local(self, path: str = "") -> Path | None:
        """The path on this machine, None in a bucket."""
        return Path(self.root, path) if self.is_local else None

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in a folder, in order; nothing if there is no such folder."""
        selector = FileSelector(self._at(folder), allow_not_found=True)
        found = (info.base_name for info in self.files.get_file_info(selector))
        return sorted(name for name in found if name and not name.startswith("."))

    def having(self, paths: Sequence[str]) -> list[str]:
        """Those of some paths that are files."""
        infos = self.files.get_file_info([self._at(path) for path in paths])
        return [path for path, info in zip(paths, infos, strict=True) if info.type == FileType.File]

    def read(self, path: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        with self.files.open_input_stream(self._at(path)) as stream:
            return stream.read()

    def write(self, path: str, data: bytes) -> None:
        """A small file, whole or not at all."""
        local = self.local(path)
        if local is None:
            with self.files.open_output_stream(self._at(path)) as stream:
                stream.write(data)
            return
        local.parent.mkdir(parents=True, exist_ok=True)
        aside = local.with_name(f".{local.name}.{uuid4().hex}.part")
        try:
            aside.write_bytes(data)
            os.replace(aside, local)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def upload(self, source: Path, path: str) -> str:
        """Copy a file of this machine in, not at once, and say the sha256 of what was copied."""
        with source.open("rb") as file:
            return self.pour(file, path)

    def pour(self, file: BinaryIO, path: str) -> str:
        """Copy in what is left of an open file, not at once, and say its sha256."""
        if self.is_local:
            Path(self._at(path)).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.files.open_output_stream(self._at(path)) as stream:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                stream.write(chunk)
        return digest.hexdigest()

    def download(self, path: str, target: Path) -> str:
        """Copy a file to this machine, not at once, and say its sha256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.files.open_input_stream(self._at(path)) as stream, target.open("wb") as file:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing if it does not exist."""
        kind = self.files.get_file_info(self._at(path)).type
        if kind == FileType.File:
            self.files.delete_file(self._at(path))
        elif kind == FileType.Directory:
            self.files.delete_dir(self._at(path))

    def claim(self, folder: str, least: int) -> Claim:
        """The next number, from ``least`` on, that nobody else has or gets, between any processes and machines.

        A claim is a file NUMBER-UNIQUE. Who finds no other with its number once its own is written has it for good: any
        other was written later and is going to find this one. Who finds another takes its own back and tries again after a
        random while, so neither of two may get a number, and never both. One that dies keeps its number, which is then
        used by nobody. Raises StoreError if others claim numbers all the time.
        """
        own, pause, until = uuid4().hex, 0.005, time.monotonic() + CLAIM_WITHIN_S
        while time.monotonic() < until:
            number = 1 + max([least - 1, *self.claimed(folder)])
            claim = Claim(number, f"{folder}/{number:08d}-{own}")
            self.write(claim.path, b"")
            if self.claimed(folder).count(number) == 1:
                return claim
            self.delete(claim.path)
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise StoreError(f"{self.place(folder)}: others claim numbers all the time; try again later")

    def claimed(self, folder: str) -> list[int]:
        """Numbers that are claimed at this moment, one for each claim."""
        return [int(name.partition("-")[0]) for name in self.names(folder) if re.match(r"\d+-", name)]

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


@dataclass(frozen=True)
class Claim:
    """A number and the file that holds it; who does not use the number deletes the file."""

    number: int
    path: str


def cache_home() -> Path:
    """Where copies of what lies in stores are kept on this machine: $GLYPHRUN_CACHE or ~/.cache/glyphrun."""
    return Path(os.environ.get("GLYPHRUN_CACHE") or "~/.cache/glyphrun").expanduser().absolute()


def open_store(place: str | os.PathLike[str]) -> Store:
    """The files under a local folder or a URI such as s3://BUCKET/PREFIX?region=R&endpoint_override=HOST:PORT.

    Credentials are those of the environment, as for any client of the store. Raises StoreError.
    """
    named = os.fspath(place)
    if "://" not in named:
        return Store(LocalFileSystem(), str(Path(named).absolute()))
    try:
        files, root = FileSystem.from_uri(named)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{named} cannot be used: {reason}; name a folder, or s3://BUCKET/PREFIX") from None
    if not root.strip("/"):
        raise StoreError(f"{named} names no bucket: give s3://BUCKET/PREFIX")
    return Store(files, root.rstrip("/"))
