"""Who can read in a decode sweep: bundles, and the winners and snapshots of runs, by their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from glyphrun.bundle import MEMBERS, SUMS, parse_manifest, read_manifest
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.sweeps.decode_settings import with_files
from glyphrun.sweeps.errors import ExperimentError


class Known(NamedTuple):
    """What is known of readers without loading them, by their names.

    own: decode settings, files of correction by absolute paths. kinds: of recognizers. inputs: codec and image processor.
    """

    own: dict[str, DecodeSettings]
    kinds: dict[str, str]
    inputs: dict[str, str]


def readers_of(sources: Sequence[Path]) -> dict[str, Path]:
    """The bundles that can read, by name: the folder's for a bundle, and for a run its winner and the winner's snapshots.

    Raises ExperimentError for a folder that is neither, and for two of one name.
    """
    if not sources:
        raise ExperimentError(
            "nothing to read with: name at least one bundle or run, and last the folder of a data set"
        )
    readers: dict[str, Path] = {}
    for source in sources:
        for name, folder in _of_source(source).items():
            if name in readers:
                raise ExperimentError(
                    f"{folder} and {readers[name]} are both called {name}: rename a folder, or read them apart"
                )
            if parse_manifest(folder).ensemble is not None:
                raise ExperimentError(
                    f"{folder} is an ensemble: name the bundles in its {MEMBERS}, which vote here in any way"
                )
            readers[name] = folder
    return readers


def own_of(readers: Mapping[str, Path]) -> Known:
    """What the manifests of the readers say. Raises BundleError."""
    known = Known({}, {}, {})
    for name, folder in readers.items():
        manifest = read_manifest(folder)
        decode = with_files(manifest.decode.model_dump(mode="json"), folder)
        known.own[name] = DecodeSettings.model_validate(decode)
        known.kinds[name] = str(manifest.recognizer["kind"])
        known.inputs[name] = json.dumps([manifest.codec, manifest.processor.model_dump(mode="json")], sort_keys=True)
    return known


def digests_of(readers: Mapping[str, Path]) -> dict[str, str]:
    """A hash of each reader's files."""
    return {name: hashlib.sha256((folder / SUMS).read_bytes()).hexdigest() for name, folder in readers.items()}


def _of_source(source: Path) -> dict[str, Path]:
    if (source / SUMS).exists():
        return {source.resolve().name: source}
    results = source / "results.json"
    if not results.exists():
        raise ExperimentError(f"{source} is neither a bundle (it has no {SUMS}) nor a finished run (no results.json)")
    try:
        winner = str(json.loads(results.read_text(encoding="utf-8"))["winner"])
    except (ValueError, TypeError, KeyError):
        raise ExperimentError(f"{results} is damaged: copy the run again") from None
    snapshots = sorted((source / "trials" / winner / "snapshots").glob("step-*"))
    return {source.resolve().name: source / "bundle"} | {folder.name: folder for folder in snapshots}
