"""Small recognizers in int8 and in float, bundles of them, and what to read."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from glyphrun.bundle import save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.images import encode_image
from glyphrun.models.inference import compute_in_int8
from glyphrun.models.quantize import Method, int8_matrices, restored, stored
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

CPU = torch.device("cpu")
CODEC = Codec(DIGITS, 2)
WIDE = {"encoder": {"width": 192, "mlp_ratio": 4.0}}
"""A block of 442,368 weights: the smallest size here that computes in int8."""


def recognizer(name: str, **changes: object) -> Recognizer:
    torch.manual_seed(3)
    return build(recognizer_settings(name, changes), CODEC).eval()


def save(folder: Path, model: Recognizer, method: Method = "float32") -> Path:
    save_bundle(
        folder,
        name="numbers",
        recognizer=model,
        codec=CODEC,
        processor=processor_for(model.settings),
        decode=DecodeSettings(),
        metrics={},
        provenance={"seed": "3"},
        method=method,
    )
    return folder


def in_int8(model: Recognizer, pays: int = 1) -> Recognizer:
    """A copy in which every layer with int8 weights computes in int8, if nothing else is said."""
    tensors = stored(model, "int8")
    quantized = copy.deepcopy(model)
    quantized.load_state_dict(restored(tensors))
    compute_in_int8(quantized, int8_matrices(tensors), pays)
    return quantized


def engine_of(model: Recognizer) -> Engine:
    return Engine(model, CODEC, processor_for(model.settings), device=CPU, precision="float32")


def crop(seed: int, height: int = 40, width: int = 40) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def features(engine: Engine, items: list[list[bytes]]) -> list[np.ndarray]:
    found = engine.embed([engine.prepare(item, name="item") for item in items])
    return [np.concatenate(item.frames) for item in found]
