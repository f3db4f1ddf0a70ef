"""The files of a run's folder while others write in it: each folder's as they lie there together at one moment."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path

PREVIOUS = ".previous"  # what a folder is called while it is replaced, and after a process was killed at that


def folders_outside_in(folder: Path, without: Collection[str] = (), path: str = "") -> Iterator[tuple[Path, str]]:
    """A folder and all below it, hidden ones and some of the first level left out; path: what is before their files' names.

    Outer ones come first: a file there that says that something is done was written after it.
    """
    yield folder, path
    with suppress(FileNotFoundError):
        names = {entry.name for entry in os.scandir(folder) if entry.is_dir()} - set(without)
        for name in sorted(names):
            meant = name.removeprefix(".").removesuffix(PREVIOUS) if name.endswith(PREVIOUS) else name
            if not meant.startswith(".") and (meant == name or meant not in names):
                yield from folders_outside_in(folder / name, (), f"{path}{meant}/")


@contextmanager
def files_together(folder: Path) -> Iterator[dict[str, BufferedReader]]:
    """The files that lie in a folder at one moment, open, to be read even if the folder is replaced meanwhile."""
    with ExitStack() as stack:
        while True:
            try:
                opened = _opened(folder, stack)
            except FileNotFoundError:
                if folder.exists():
                    continue
                opened = {}
            if opened is not None:
                yield opened
                return


def _opened(folder: Path, stack: ExitStack) -> dict[str, BufferedReader] | None:
    """None if another has taken the folder's place meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    opener = partial(os.open, dir_fd=descriptor)
    with os.scandir(descriptor) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    opened: dict[str, BufferedReader] = {}
    for name in names:
        file = open(name, "rb", opener=opener)  # noqa: SIM115 # of that folder, whatever its name is by now
        opened[name] = stack.enter_context(file)
    return opened if os.path.samestat(folder.stat(), os.fstat(descriptor)) else None
