"""A bundle of bundles: an ensemble with all its members in one folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glyphrun.bundle import (
    MANIFEST,
    MEMBERS,
    BundleError,
    BundleManifest,
    engine_of,
    parse_manifest,
    provenance_of,
    read_manifest,
    with_correction_files,
    write_manifest,
    written_whole,
)
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import Precision
from glyphrun.ensemble import Ensemble, Reader
from glyphrun.members import EnsembleSettings


def save_ensemble(
    folder: Path,
    *,
    name: str,
    members: Mapping[str, Path],
    settings: EnsembleSettings,
    decode: DecodeSettings,
    metrics: dict[str, Any],
    provenance: dict[str, str],
    files: Path | None = None,
) -> None:
    """Copy bundles into one, whole or not at all; members: their folders by the names that the settings use.

    decode: what follows after the vote, as in ``Ensemble``, and files the folder from which it names what correction
    needs, which is copied; the working folder by default. Raises BundleError if the folder exists, if a member is no
    recognizer's bundle or if members cannot be averaged as the settings ask, ValueError for settings that do not fit.
    """
    settings.check(list(members))
    manifests = member_manifests(members)
    with written_whole(folder) as aside:
        for member, path in members.items():
            shutil.copytree(path, aside / MEMBERS / member)
        decode = with_correction_files(decode, files or Path(), aside)
        write_manifest(aside, _manifest(name, manifests, settings, decode, metrics, provenance))
        if settings.vote == "average":
            load_reader(aside, torch.device("cpu"))  # refuses members that differ before they are kept


def member_manifests(members: Mapping[str, Path]) -> dict[str, BundleManifest]:
    """The manifests of bundles that are to be members, after every hash was checked. Raises BundleError, naming the member."""
    manifests: dict[str, BundleManifest] = {}
    for member, path in members.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", member):
            raise BundleError(
                f"{member!r} cannot be a member's name: use letters, digits, dots, dashes and underscores"
            )
        manifests[member] = read_manifest(path)
        if manifests[member].ensemble is not None:
            raise BundleError(f"{path} is an ensemble itself: name the bundles in its {MEMBERS} instead")
    return manifests


def load_reader(folder: Path, device: torch.device | None = None, precision: Precision | None = None) -> Reader:
    """What a bundle reads with, an engine or an ensemble, after every hash was checked. Raises BundleError."""
    manifest = read_manifest(folder)
    if manifest.ensemble is None:
        return engine_of(folder, manifest, device, precision)
    homes = {member: folder / MEMBERS / member for member in manifest.recognizer["members"]}
    members = {member: engine_of(home, parse_manifest(home), device, precision) for member, home in homes.items()}
    try:
        return Ensemble(members, manifest.ensemble, manifest.decode, provenance=provenance_of(manifest), files=folder)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from None


def _manifest(
    name: str,
    members: Mapping[str, BundleManifest],
    settings: EnsembleSettings,
    decode: DecodeSettings,
    metrics: dict[str, Any],
    provenance: dict[str, str],
) -> BundleManifest:
    codecs = [manifest.codec for manifest in members.values()]
    return BundleManifest(
        name=name,
        recognizer={
            "kind": "ensemble",
            "members": {member: manifest.recognizer["kind"] for member, manifest in members.items()},
        },
        codec={
            "charset": "".join(dict.fromkeys("".join(codec.get("charset", "") for codec in codecs))),
            "max_length": max(codec["max_length"] for codec in codecs),
        },
        processor=next(iter(members.values())).processor,
        decode=decode,
        ensemble=settings,
        metrics=metrics,
        provenance=provenance,
    )
