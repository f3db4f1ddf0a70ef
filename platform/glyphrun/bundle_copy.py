"""A bundle once more, to be read in another way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from glyphrun.bundle import CARD, MANIFEST, SUMS, read_manifest, with_correction_files, write_manifest, written_whole
from glyphrun.decoding.settings import DecodeSettings


def copy_bundle(
    source: Path,
    folder: Path,
    *,
    name: str,
    decode: DecodeSettings,
    metrics: dict[str, Any],
    provenance: dict[str, str],
) -> None:
    """Copy a recognizer's bundle under another name, whole or not at all, with other decode settings and figures.

    What correction needs is named as seen from the source, and copied. Raises BundleError if the folder exists or the source
    is no bundle, CorrectionError for a file that is not there.
    """
    manifest = read_manifest(source)
    with written_whole(folder) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, CARD, SUMS))
        if manifest.decode.correction is not None:
            from glyphrun.correction import correction_files  # here: most bundles correct nothing

            for place in correction_files(manifest.decode.correction, source)[1]:
                (aside / place).unlink()  # the copy has what it needs itself
        decode = with_correction_files(decode, source, aside)
        changed = {"name": name, "decode": decode, "metrics": metrics, "provenance": provenance}
        write_manifest(aside, manifest.model_copy(update=changed))
