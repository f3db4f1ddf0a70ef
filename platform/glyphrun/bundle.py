"""A bundle: a folder with all that is needed to read as it was measured, every file under a hash, no pickle anywhere.

A bundle of an ensemble has whole bundles in ``members`` and no weights of its own (``ensemble_bundle``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from glyphrun.compiled import compile_blocks
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import Precision, default_device
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor
from glyphrun.members import EnsembleSettings
from glyphrun.models.quantize import Method, load_stored, precision_of, stored
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, parse_settings
from glyphrun.recipe import read_codec, write_codec
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec

WEIGHTS, MANIFEST, CARD, SUMS = "weights.safetensors", "manifest.json", "MODEL_CARD.md", "SHA256SUMS"
MEMBERS = "members"


class BundleError(ValueError):
    """A folder that is no bundle, or one that was changed; the message names the file."""


class StoredPrecision(BaseModel):
    """How the weights are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "float32"


class BundleManifest(BaseModel):
    """What a bundle says of itself. version is 0 until a registry gives it one; metrics hold scores a split.

    That of an ensemble has ``ensemble`` and the kinds of its members as ``recognizer``; codec is what they read together,
    processor the first one's, decode what follows after the vote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    name: str
    version: int = 0
    recognizer: dict[str, Any]
    codec: dict[str, Any]
    processor: ImageProcessor
    decode: DecodeSettings
    precision: StoredPrecision = StoredPrecision()
    ensemble: EnsembleSettings | None = None
    metrics: dict[str, Any]
    provenance: dict[str, str]


def save_bundle(
    folder: Path,
    *,
    name: str,
    recognizer: Recognizer,
    codec: Codec | SubwordCodec,
    processor: ImageProcessor,
    decode: DecodeSettings,
    metrics: dict[str, Any],
    provenance: dict[str, str],
    method: Method = "float32",
    files: Path | None = None,
) -> None:
    """Write a bundle whole or not at all, its weights stored by a method.

    files: the folder from which ``decode`` names what correction needs, which is copied; the working folder by default.
    Raises BundleError if the folder exists, CorrectionError for a file that is not there.
    """
    with written_whole(folder) as aside:
        decode = with_correction_files(decode, files or Path(), aside)
        save_file(stored(recognizer, method), aside / WEIGHTS)
        manifest = BundleManifest(
            name=name,
            recognizer=recognizer.settings.model_dump(mode="json"),
            codec=write_codec(codec, aside),
            processor=processor,
            decode=decode,
            precision=StoredPrecision(method=method),
            metrics=metrics,
            provenance=provenance,
        )
        write_manifest(aside, manifest)


def with_correction_files(decode: DecodeSettings, files: Path, folder: Path) -> DecodeSettings:
    """Copy what correction needs from one folder to another, and the settings that find it there. Raises CorrectionError."""
    if decode.correction is None:
        return decode
    from glyphrun.correction import correction_files  # here: most bundles correct nothing

    correction, wanted = correction_files(decode.correction, files)
    for place, source in wanted.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / place)
    return decode.model_copy(update={"correction": correction})


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder aside that takes the place of ``folder`` once all is in it. Raises BundleError if that exists."""
    if folder.exists():
        raise BundleError(f"{folder} exists already: choose another folder or remove it")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_manifest(folder: Path, manifest: BundleManifest) -> None:
    """Put a manifest, its model card and the hashes of all files into a folder that nobody reads yet."""
    (folder / MANIFEST).write_text(
        json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    (folder / CARD).write_text(_model_card(manifest), encoding="utf-8")
    files = [file for file in _files(folder) if file != SUMS]
    (folder / SUMS).write_text("".join(f"{_sha256(folder / file)}  {file}\n" for file in files))


def read_manifest(folder: Path) -> BundleManifest:
    """The manifest of a bundle, after every hash was checked. Raises BundleError naming the file that is wrong."""
    verify(folder)
    return parse_manifest(folder)


def parse_manifest(folder: Path) -> BundleManifest:
    """The manifest of a folder whose hashes are known to be right. Raises BundleError."""
    try:
        return BundleManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from None


def verify(folder: Path) -> None:
    """Check every file against SHA256SUMS. Raises BundleError for a missing, changed or unlisted file."""
    try:
        sums = (folder / SUMS).read_text(encoding="utf-8")
    except OSError:
        raise BundleError(f"{folder} is no bundle: it has no {SUMS}") from None
    listed = listed_files(sums, folder / SUMS)
    members = any(file.startswith(f"{MEMBERS}/") for file in listed)
    for file in (MANIFEST,) if members else (WEIGHTS, MANIFEST):
        if file not in listed:
            raise BundleError(f"{folder / SUMS} does not list {file}: the bundle is incomplete, copy it again")
    for file, digest in listed.items():
        path = folder / file
        if not path.is_file():
            raise BundleError(f"{path} is missing: copy the bundle again")
        if _sha256(path) != digest:
            raise BundleError(f"{path} was changed: its sha256 is not the one in {SUMS}; copy the bundle again")
    for file in _files(folder):
        if file not in listed and file != SUMS:
            raise BundleError(f"{folder / file} is not listed in {SUMS}: remove it or copy the bundle again")


def listed_files(sums: str, name: Path | str) -> dict[str, str]:
    """The sha256 of every file that SHA256SUMS lists; name: what it is called. Raises BundleError for one outside."""
    listed = {file: digest for digest, _, file in (line.partition("  ") for line in sums.splitlines()) if file}
    for file in listed:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise BundleError(f"{name} lists {file!r}, which lies outside the bundle")
    return listed


def _files(folder: Path) -> list[str]:
    """Everything in a folder and below that is no folder itself, in order, with slashes."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def load_engine(folder: Path, device: torch.device | None = None, precision: Precision | None = None) -> Engine:
    """The engine of a recognizer's bundle, after every hash was checked. Raises BundleError."""
    manifest = read_manifest(folder)
    if manifest.ensemble is not None:
        raise BundleError(f"{folder} is an ensemble and has no one recognizer: name one of those in {folder / MEMBERS}")
    return engine_of(folder, manifest, device, precision)


def engine_of(
    folder: Path, manifest: BundleManifest, device: torch.device | None, precision: Precision | None
) -> Engine:
    """The engine of a bundle whose manifest was read and hashes checked. Raises BundleError."""
    codec = read_codec(manifest.codec, folder)
    recognizer = build(parse_settings(manifest.recognizer), codec)
    method, device = manifest.precision.method, device or default_device()
    try:
        load_stored(recognizer, load_file(folder / WEIGHTS), device)
    except RuntimeError as error:
        raise BundleError(f"{folder / WEIGHTS} does not fit the recognizer of {MANIFEST}: {error}") from None
    engine = Engine(
        recognizer,
        codec,
        manifest.processor,
        manifest.decode,
        device=device,
        precision=precision or precision_of(method, device),
        provenance=provenance_of(manifest),
        files=folder,
    )
    compile_blocks(engine)
    return engine


def provenance_of(manifest: BundleManifest) -> dict[str, str]:
    """What predictions say of where their weights come from."""
    return {"name": manifest.name, "version": str(manifest.version), **manifest.provenance}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_card(manifest: BundleManifest) -> str:
    rows = [
        f"| {split} | {scores['n']} | {scores['exact']:.4f} | {scores['exact_ci'][0]:.4f}–{scores['exact_ci'][1]:.4f} "
        f"| {'–' if scores['cer'] is None else format(scores['cer'], '.4f')} |"
        for split, scores in manifest.metrics.items()
    ]
    origin = [f"- {key}: {value}" for key, value in sorted(manifest.provenance.items())]
    return "\n".join(
        [
            f"# {manifest.name}, version {manifest.version}",
            "",
            _what_it_is(manifest),
            "",
            "| split | n | exact match | 95 % interval | CER |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *origin,
            "",
        ]
    )


def _what_it_is(manifest: BundleManifest) -> str:
    if manifest.ensemble is not None:
        members = ", ".join(f"{member} ({kind})" for member, kind in manifest.recognizer["members"].items())
        return f"An ensemble of {members}. Vote: {manifest.ensemble.vote}."
    return (
        f"A {manifest.recognizer['kind']} recognizer of {_vocabulary(manifest.codec)}. "
        f"Weights are stored in {manifest.precision.method}."
    )


def _vocabulary(codec: dict[str, Any]) -> str:
    if codec.get("kind") == "subwords":
        return f"subwords, labels of up to {codec['max_length']} of them"
    return f"{len(codec['charset'])} characters, labels of up to {codec['max_length']}"
