"""A run kept at a URI: worked on in a folder of this machine, and copied to a store while it goes on.

STORE/run.json names every file of the run by its sha256, and STORE/files/SHA256 holds it. Such an object never changes, and
run.json is written when all that it names is there, so whoever reads it finds the run as it was at one moment, however the
process ended that wrote it. results.json and report.html lie beside it once more, for people.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from glyphrun.files_at_once import files_together, folders_outside_in
from glyphrun.run_folder import only_process
from glyphrun.store import cache_home, open_store

RUN, OWNER = "run.json", ".owner"
FOR_PEOPLE = ("results.json", "report.html")
TRIALS, CHECKPOINT = "trials/", "/checkpoint/"  # parts of paths
OURS = ("tune", "reruns")  # what the next attempt does not need
EVERY_S = 30.0  # checkpoints are written between reports too
PAUSE_S = 5.0  # before a store that failed is tried again

Tell = Callable[[str], None]


class MirrorError(ValueError):
    """A run that cannot be read from its URI or copied to it; the message says what to do."""


@contextmanager
def run_at(place: str, tell: Tell, *, resume: bool = False) -> Iterator[tuple[Path, list[Mirror]]]:
    """The folder to work in on the run of a place, and who must hear of its trials for them to be copied there.

    A path, or a URI of file://, is that folder itself and nothing is copied. Anything else is worked on in a folder of the
    cache, which is first made what the URI holds, unless it is what that was made from. resume: go on with what another
    machine began, which then can no more. tell: of copies that fail, which are tried again. Raises MirrorError, at the
    latest in the end, and StoreError.
    """
    folder = _local(place)
    if folder is not None:
        yield folder, []
        return
    mirror = Mirror(place)
    with only_process(mirror.home), mirror.copying(tell, resume):
        yield mirror.folder, [mirror]


def fetch_run(place: str, without: tuple[str, ...] = ()) -> Path:
    """A run's folder to read from, of a URI a copy as it is now. without: parts of paths of files that are not needed."""
    return _local(place) or Mirror(place).view(without)


def hand_over(place: str, file: Path) -> str:
    """Put a file for people beside the run that is kept at a place, and say where it is."""
    if _local(place) is not None:
        return str(file)
    store = open_store(place)
    store.upload(file, file.name)
    return store.place(file.name)


def shown(place: str) -> str:
    """A place as it may be kept and shown: without the options and credentials of a URI."""
    return open_store(place).place()


class Mirror:
    """Listens to a sweep, and copies what its folder holds whenever there is news of a trial, in a thread of its own."""

    def __init__(self, place: str) -> None:
        self.store = open_store(place)
        self.home = cache_home() / "runs" / hashlib.sha256(place.encode()).hexdigest()[:16]
        self.folder = self.home / self.store.root.rpartition("/")[2]
        self.owner = ""
        self.owners: set[str] = set()  # who may have written last
        self.sent: dict[str, str] = {}  # sha256 of each file, as the store's run.json has it
        self.there: set[str] | None = None  # the objects in the store, once it is this machine's
        self.known: dict[tuple[int, ...], str] = {}  # sha256 of files that did not change since they were read
        self.news, self.over, self.begun = Event(), Event(), False

    def started(self, *_: Any) -> None:
        """There is news."""
        self.begun = True
        self.news.set()

    reported = waits = ended = started

    @contextmanager
    def copying(self, tell: Tell, resume: bool) -> Iterator[None]:
        """Copies in this scope, and at its end what is left."""
        self._open(resume)
        thread = Thread(target=self._keep_copying, args=(tell,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._end(thread)
            try:
                if self.begun:
                    self.push()
            except Exception as error:
                tell(self._failed(error))
            raise
        self._end(thread)
        try:
            self.push()
        except Exception as error:
            raise MirrorError(self._failed(error)) from error

    def push(self) -> None:
        """Copy what is new. Raises MirrorError if another machine goes on with the run."""
        told = self._told()
        if told is not None and told["owner"] not in self.owners:
            raise MirrorError(
                f"{self.store.place()} is gone on with by another machine: what this one did since is in {self.folder} alone"
            )
        if told is None or told["owner"] != self.owner:
            self._write(self.sent)
        if self.there is None:  # only now, since until then another may have deleted what it did not need
            self.there = set(self.store.names("files"))
        files: dict[str, str] = {}
        for folder, path in folders_outside_in(self.folder, OURS):
            with files_together(folder) as opened:
                for name, file in opened.items():
                    self._send(file, f"{path}{name}", files)
        for name in FOR_PEOPLE:
            if name in files and files[name] != self.sent.get(name):
                self.store.write(name, self.store.read(f"files/{files[name]}"))
        if files != self.sent:
            self._write(files)
        for digest in self.there - set(files.values()):
            self.store.delete(f"files/{digest}")
        self.there &= set(files.values())

    def view(self, without: tuple[str, ...]) -> Path:
        """What the store holds, without some of it, in a folder that nobody works in. Raises MirrorError."""
        told = self._told()
        if told is None:
            raise MirrorError(f"{self.store.place()} holds no run: it has no {RUN}")
        if told["owner"] == self._own():
            return self.folder
        state = hashlib.sha256(json.dumps(told["files"], sort_keys=True).encode()).hexdigest()[:16]
        folder = self.home / "views" / state / self.folder.name
        self._pull(told, folder, without)
        return folder

    def _open(self, resume: bool) -> None:
        """Make the folder what the store holds, unless that came from here."""
        told, own = self._told(), self._own()
        if own is None or (told is not None and told["owner"] != own):
            if told is not None and not resume:
                raise MirrorError(
                    f"{self.store.place()} holds a run that was not begun here: --resume goes on with it, which no other "
                    "machine then can"
                )
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            if told is not None:
                self._pull(told, self.folder)
            (self.folder / OWNER).write_text(uuid4().hex)
        self.owner = self._own() or ""
        self.owners = {self.owner} | ({told["owner"]} if told else set())
        self.sent = dict(told["files"]) if told else {}

    def _write(self, files: dict[str, str]) -> None:
        document = {"schema": 1, "owner": self.owner, "files": files}
        self.store.write(RUN, json.dumps(document, indent=1, sort_keys=True).encode())
        self.sent, self.owners = files, {self.owner}

    def _keep_copying(self, tell: Tell) -> None:
        failed = False
        while not self.over.is_set():
            if not self.news.wait(EVERY_S) and not self.begun:
                continue
            self.news.clear()
            try:
                if not self.over.is_set():
                    self.push()
                failed = False
            except Exception as error:
                if not failed:
                    tell(self._failed(error))
                failed = True
                self.over.wait(PAUSE_S)
                self.news.set()

    def _end(self, thread: Thread) -> None:
        self.over.set()
        self.news.set()
        thread.join()

    def _failed(self, error: Exception) -> str:
        if isinstance(error, MirrorError):
            return str(error)
        return (
            f"the run cannot be copied to {self.store.place()}: {error}; it is whole in {self.folder}, and the same command "
            "copies it"
        )

    def _send(self, file: BufferedReader, path: str, files: dict[str, str]) -> None:
        about = os.fstat(file.fileno())
        signature = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        digest = self.known.get(signature) or hashlib.file_digest(file, "sha256").hexdigest()
        assert self.there is not None
        if digest not in self.there:
            file.seek(0)
            if self.store.pour(file, f"files/{digest}") != digest:  # it is being written: next time
                self.store.delete(f"files/{digest}")
                files |= {path: self.sent[path]} if path in self.sent else {}
                return
            self.there.add(digest)
        self.known[signature] = files[path] = digest

    def _pull(self, told: Mapping[str, Any], folder: Path, without: tuple[str, ...] = ()) -> None:
        for path, digest in told["files"].items():
            if not (folder / path).resolve().is_relative_to(folder.resolve()):
                raise MirrorError(f"{self.store.place(RUN)} names {path}, which is not in the run's folder")
            if any(part in path for part in without) or (folder / path).exists():
                continue
            aside = folder / f".{uuid4().hex}.part"
            try:
                found = self.store.download(f"files/{digest}", aside)
                if found != digest:
                    raise MirrorError(f"{self.store.place(f'files/{digest}')} is not what was written: {path} is lost")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, folder / path)
            except FileNotFoundError:
                raise MirrorError(f"{self.store.place()} has changed while it was read: try again") from None
            finally:
                aside.unlink(missing_ok=True)

    def _told(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.store.read(RUN)))
        except FileNotFoundError:
            return None
        except ValueError:
            raise MirrorError(f"{self.store.place(RUN)} cannot be read: is it a run's?") from None

    def _own(self) -> str | None:
        """Who made the folder of this machine what it is."""
        path = self.folder / OWNER
        return path.read_text() if path.exists() else None


def _local(place: str) -> Path | None:
    return open_store(place).local()
