"""A registry: immutable versions of bundles by name, and a pointer to the current one that moves at once.

NAME/VERSION/bundle is a bundle and NAME/VERSION/promotion.json says how it came there: written last, it makes the version
exist. Versions and moves of the pointer have claimed numbers (``store``, ``pointer``), so any number of processes and
machines can promote at once: each makes a version, and of those that were compared with the same champion one becomes
current and the others are told so. A process that dies leaves files that are no version, and a number that is not used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from glyphrun.bundle import (
    CARD,
    MANIFEST,
    SUMS,
    BundleManifest,
    listed_files,
    read_manifest,
    verify,
    write_manifest,
)
from glyphrun.bundle_cache import cached_bundle
from glyphrun.pointer import Move, Pointer, line_of
from glyphrun.store import Claim, open_store
from glyphrun.versions import (
    Deployment,
    Document,
    Promotion,
    Readings,
    RegistryError,
    read_document,
    write_document,
)

RECORD, READINGS, DEPLOYMENTS = "promotion.json", "readings.json", "deployments"


@dataclass(frozen=True)
class RegisteredModel:
    """A name with its current version, all its versions and where the current bundle lies."""

    name: str
    version: int
    versions: list[int]
    place: str


@dataclass(frozen=True)
class Promoted:
    """A new version, and the one that is current since: another if that came about while this one was compared."""

    name: str
    version: int
    current: int
    place: str


class Registry:
    """Models by name under a local folder or a URI of any pyarrow file system. Bundles of a URI are cached on this machine.

    All methods raise RegistryError, StoreError for a place that cannot be used, and OSError.
    """

    def __init__(self, root: str | os.PathLike[str], *, cache: Path | None = None) -> None:
        """cache: $GLYPHRUN_CACHE or ~/.cache/glyphrun if it is None."""
        self.root = os.fspath(root)
        self._store = open_store(root)
        self._cache = cache

    def promote(
        self, bundle: Path, name: str, *, at: datetime, readings: Readings | None = None, **record: Any
    ) -> Promoted:
        """Copy a bundle in as the next version of a name and point to it.

        record: what else the version's Promotion says. If it says with which version this one was compared, and another
        is current by now, the new version is kept but not pointed to. Raises BundleError.
        """
        expect_name(name)
        manifest = read_manifest(bundle)
        claim = self._store.claim(f"{name}/claims/versions", 1 + max(self._folders(name), default=0))
        version = claim.number
        try:
            with _renamed(bundle, manifest.model_copy(update={"name": name, "version": version})) as renamed:
                self._copy_in(renamed, f"{name}/{version}/bundle")
                sums = (renamed / SUMS).read_bytes()
            if readings is not None:
                write_document(self._store, f"{name}/{version}/{READINGS}", readings)
            promotion = Promotion(
                name=name,
                version=version,
                at=at,
                bundle=hashlib.sha256(sums).hexdigest(),
                experiment_hash=manifest.provenance.get("experiment_hash"),
                **{"run": str(bundle.absolute()), **record},
            )
            write_document(self._store, f"{name}/{version}/{RECORD}", promotion)
        except BaseException:
            self._take_back(name, claim)
            raise
        move = Move(version=version, at=at, why="promotion")
        current = self._pointer(name).move(move, instead_of=promotion.compared_with)
        return Promoted(name, version, current, self._store.place(f"{name}/{version}/bundle"))

    def rollback(self, name: str, *, at: datetime, to: int | None = None) -> RegisteredModel:
        """Point to an earlier version: by default the one before the current, and with every further call one before that.

        The bundle's hashes are checked first. Raises BundleError.
        """
        model = self.model(name)
        if to is None:
            line = line_of(self.history(name))
            if len(line) < 2:
                raise RegistryError(f"no version of {name} was current before {model.version}: name one with --to")
            to = line[-2]
        if to == model.version:
            raise RegistryError(f"version {to} of {name} is the current one already")
        verify(self.resolve(f"{name}@{to}"))
        current = self._pointer(name).move(Move(version=to, at=at, why="rollback"), instead_of=model.version)
        if current != to:
            raise RegistryError(f"version {current} of {name} became current meanwhile: nothing was rolled back")
        return self.model(name)

    def resolve(self, name_or_path: str) -> Path:
        """The bundle folder behind a path, a name (its current version) or NAME@VERSION; from a URI, a copy of it."""
        path = Path(name_or_path)
        if (path / SUMS).exists():
            return path
        name, _, wanted = name_or_path.partition("@")
        if not _is_name(name) or not self._pointer(name).exists():
            known = ", ".join(self.names()) or "none yet"
            raise RegistryError(
                f"{name_or_path!r} is neither a bundle's folder nor a model in {self._store.place()} (it has: {known})"
            )
        version = self._version(name, wanted) if wanted else self.current(name)
        assert version is not None
        folder, digest = f"{name}/{version}/bundle", self.promotion(name, version).bundle
        local = self._store.local(folder)
        if local is None:
            return cached_bundle(self._store, folder, digest, self._cache)
        if (local / SUMS).exists() and hashlib.sha256((local / SUMS).read_bytes()).hexdigest() != digest:
            raise RegistryError(f"{local} was changed after its promotion: roll back to another version of {name}")
        return local

    def names(self) -> list[str]:
        """Every name that has a current version."""
        return [name for name in self._store.names() if _is_name(name) and self._pointer(name).exists()]

    def model(self, name: str) -> RegisteredModel:
        """A name with its versions."""
        current = self.current(name) if _is_name(name) else None
        if current is None:
            raise self._no_model(name)
        return RegisteredModel(name, current, self.versions(name), self._store.place(f"{name}/{current}/bundle"))

    def versions(self, name: str) -> list[int]:
        """All versions of a name, oldest first, also those that were never current."""
        records = {f"{name}/{version}/{RECORD}": version for version in self._folders(name)}
        return sorted(records[path] for path in self._store.having(list(records)))

    def current(self, name: str) -> int | None:
        """The current version of a name, None if there is none."""
        return self._pointer(name).current()

    def history(self, name: str) -> list[Move]:
        """All moves of the pointer, oldest first."""
        return self._pointer(name).history()

    def note_deployment(self, name: str, deployment: Deployment) -> None:
        """Keep that a server was given a version, and with which settings."""
        claim = self._store.claim(f"{name}/claims/deployments", 1 + len(self._deployments(name)))
        write_document(self._store, f"{name}/{DEPLOYMENTS}/{claim.number:08d}.json", deployment)

    def deployments(self, name: str) -> list[Deployment]:
        """What servers were given, oldest first."""
        return [self._read(path, Deployment) for path in self._deployments(name)]

    def promotion(self, name: str, version: int) -> Promotion:
        """How a version came about."""
        return self._read(f"{name}/{self._version(name, version)}/{RECORD}", Promotion)

    def readings(self, name: str, version: int) -> Readings | None:
        """What a version was seen to read when it was compared, None if it was not."""
        path = f"{name}/{version}/{READINGS}"
        return self._read(path, Readings) if self._store.having([path]) else None

    def manifest(self, name: str, version: int) -> BundleManifest:
        """What a version's bundle says of itself, with no hash checked."""
        return self._read(f"{name}/{version}/bundle/{MANIFEST}", BundleManifest)

    def sums(self, name: str, version: int) -> dict[str, str]:
        """The sha256 of every file of a version's bundle."""
        path = f"{name}/{version}/bundle/{SUMS}"
        return listed_files(self._store.read(path).decode(), self._store.place(path))

    def _pointer(self, name: str) -> Pointer:
        return Pointer(self._store, name)

    def _no_model(self, name: str) -> RegistryError:
        known = ", ".join(self.names()) or "none yet"
        return RegistryError(f"{self._store.place()} has no model {name!r} (it has: {known})")

    def _version(self, name: str, wanted: int | str) -> int:
        have = self.versions(name)
        if not have:
            raise self._no_model(name)
        if not str(wanted).isdecimal() or int(wanted) not in have:
            raise RegistryError(f"{name} has no version {str(wanted)!r}: it has {', '.join(map(str, have))}")
        return int(wanted)

    def _folders(self, name: str) -> list[int]:
        return [int(folder) for folder in self._store.names(name) if folder.isdecimal()]

    def _take_back(self, name: str, claim: Claim) -> None:
        """Remove what there is of a version, its record first, so that no half of one ever exists."""
        for path in (f"{name}/{claim.number}/{RECORD}", f"{name}/{claim.number}", claim.path):
            with suppress(OSError):  # what cannot be removed is no version, and its number is used by nobody
                self._store.delete(path)

    def _copy_in(self, bundle: Path, folder: str) -> None:
        sums = (bundle / SUMS).read_text(encoding="utf-8")
        for file, digest in listed_files(sums, bundle / SUMS).items():
            if self._store.upload(bundle / file, f"{folder}/{file}") != digest:
                raise RegistryError(f"{file} was changed while it was copied: promote the bundle again")
        self._store.write(f"{folder}/{SUMS}", sums.encode())

    def _deployments(self, name: str) -> list[str]:
        return [f"{name}/{DEPLOYMENTS}/{file}" for file in self._store.names(f"{name}/{DEPLOYMENTS}")]

    def _read(self, path: str, kind: type[Document]) -> Document:
        return read_document(self._store, path, kind, "restore it from a copy, or roll back to another version")


def expect_name(name: str) -> None:
    """Raises RegistryError for what cannot be a model's name."""
    if not _is_name(name):
        raise RegistryError(
            f"{name!r} cannot be a model's name: use lower-case letters, digits, dots, dashes and underscores"
        )


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) is not None


@contextmanager
def _renamed(bundle: Path, manifest: BundleManifest) -> Iterator[Path]:
    """A bundle under another manifest, its other files links to those that there are."""
    with tempfile.TemporaryDirectory(prefix="glyphrun-") as folder:
        renamed = Path(folder) / "bundle"
        shutil.copytree(bundle.absolute(), renamed, copy_function=os.symlink)
        for file in (MANIFEST, CARD, SUMS):
            (renamed / file).unlink(missing_ok=True)
        write_manifest(renamed, manifest)
        before, now = (listed_files((home / SUMS).read_text(encoding="utf-8"), home) for home in (bundle, renamed))
        for file in now.keys() - {MANIFEST, CARD}:
            if now[file] != before.get(file):
                raise RegistryError(f"{bundle / file} was changed while it was promoted: promote the bundle again")
        yield renamed
