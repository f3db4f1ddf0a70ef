"""What is known of an adapter that was found to fit its base, where it is not loaded: it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shelved:
    """An adapter on disk.

    manifest, tensors: the sha256 of its two files; rank: of its updates; size: bytes that its tensors take at most, in
    any precision.
    """

    folder: Path
    manifest: str
    tensors: str
    rank: int
    size: int
