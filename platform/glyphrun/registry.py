"""A registry: NAME/VERSION/bundle, immutable, and an atomic pointer to the current version with its history."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glyphrun.bundle import SUMS, read_manifest, write_manifest

POINTER = "current.json"


class RegistryError(ValueError):
    """A name or version that the registry does not have or cannot take."""


@dataclass(frozen=True)
class RegisteredModel:
    """A name with its current version, all its versions and the folder of the current bundle."""

    name: str
    version: int
    versions: list[int]
    path: Path


class Registry:
    """Models by name under one local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def promote(self, bundle: Path, name: str) -> RegisteredModel:
        """Copy a bundle in as the next version of a name and point to it. Raises BundleError, RegistryError."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
            raise RegistryError(
                f"{name!r} cannot be a model's name: use lower-case letters, digits, dots, dashes and underscores"
            )
        manifest = read_manifest(bundle)
        home = self.root / name
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home):
            version = max(self._versions(home), default=0) + 1
            aside = home / f".{version}.part"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(bundle, aside / "bundle")
            write_manifest(aside / "bundle", manifest.model_copy(update={"name": name, "version": version}))
            aside.rename(home / str(version))
            self._point(home, version)
            return self._model(home)

    def resolve(self, name_or_path: str) -> Path:
        """The bundle folder behind a path, a name (its current version) or NAME@VERSION. Raises RegistryError."""
        path = Path(name_or_path)
        if (path / SUMS).exists():
            return path
        name, _, version = name_or_path.partition("@")
        home = self.root / name
        if not name or not (home / POINTER).exists():
            known = ", ".join(model.name for model in self.models()) or "none yet"
            raise RegistryError(
                f"{name_or_path!r} is neither a bundle's folder nor a model in {self.root} (it has: {known})"
            )
        model = self._model(home)
        if not version:
            return model.path
        if not version.isdigit() or int(version) not in model.versions:
            have = ", ".join(map(str, model.versions))
            raise RegistryError(f"{name} has no version {version!r}: it has {have}")
        return home / version / "bundle"

    def models(self) -> list[RegisteredModel]:
        """Every name that has a current version."""
        return [self._model(pointer.parent) for pointer in sorted(self.root.glob(f"*/{POINTER}"))]

    def _model(self, home: Path) -> RegisteredModel:
        current = json.loads((home / POINTER).read_text(encoding="utf-8"))["version"]
        return RegisteredModel(home.name, current, self._versions(home), home / str(current) / "bundle")

    def _versions(self, home: Path) -> list[int]:
        return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit())

    def _point(self, home: Path, version: int) -> None:
        pointer = home / POINTER
        history = json.loads(pointer.read_text(encoding="utf-8"))["history"] if pointer.exists() else []
        aside = home / f".{POINTER}.part"
        aside.write_text(json.dumps({"version": version, "history": [*history, version]}) + "\n")
        os.replace(aside, pointer)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Two promotions of one name at once follow each other."""
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
