"""Tiny bundles whose fresh weights are stretched, so that frames read differently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glyphrun.bundle import save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec


def save_tiny_bundle(
    folder: Path, name: str, changes: Mapping[str, Any] | None = None, *, seed: int = 0, **decode: Any
) -> Path:
    """A bundle of a recognizer of the zoo with random weights; decode: its own decode settings."""
    torch.manual_seed(seed)
    settings = recognizer_settings(name, dict(changes or {}))
    codec = Codec(DIGITS, 2)
    recognizer = build(settings, codec)
    with torch.no_grad():
        for parameter in recognizer.parameters():
            parameter.mul_(2)
    save_bundle(
        folder,
        name=folder.name,
        recognizer=recognizer,
        codec=codec,
        processor=processor_for(settings),
        decode=DecodeSettings.model_validate(decode),
        metrics={},
        provenance={},
    )
    return folder
