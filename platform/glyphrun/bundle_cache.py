"""Bundles of a bucket on this machine, by what is in them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from uuid import uuid4

from glyphrun.bundle import SUMS, BundleError, listed_files, verify
from glyphrun.store import Store, cache_home


def cached_bundle(store: Store, folder: str, digest: str, cache: Path | None = None) -> Path:
    """A copy of a store's bundle whose SHA256SUMS has some sha256, every hash checked; downloaded if there is none yet.

    cache: $GLYPHRUN_CACHE or ~/.cache/glyphrun if it is None. Raises BundleError if the store's bundle is not what it was.
    """
    home = (cache or cache_home()) / "bundles" / digest
    if home.exists():
        try:
            _check(home, digest)
        except BundleError:
            shutil.rmtree(home)
        else:
            return home
    aside = home.with_name(f".{digest}.{uuid4().hex}.part")
    try:
        for file in [SUMS, *listed_files(store.read(f"{folder}/{SUMS}").decode(), store.place(f"{folder}/{SUMS}"))]:
            try:
                store.download(f"{folder}/{file}", aside / file)
            except FileNotFoundError:
                raise BundleError(f"{store.place(f'{folder}/{file}')} is missing: promote the bundle again") from None
        try:
            _check(aside, digest)
        except BundleError as error:
            raise BundleError(f"{store.place(folder)} is not what was promoted: {error}") from None
        try:
            aside.rename(home)
        except OSError:
            if not home.exists():
                raise  # else another process was as fast
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return home


def _check(folder: Path, digest: str) -> None:
    if hashlib.sha256((folder / SUMS).read_bytes()).hexdigest() != digest:
        raise BundleError(f"{folder / SUMS} was changed")
    verify(folder)
