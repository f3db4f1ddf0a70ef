"""A bundle to be served, what is sent to a server, and what its answers must be."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from glyphrun.bundle import save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.prediction import Prediction
from glyphrun.text import DIGITS, Codec

METRICS = {"test": {"n": 100, "exact": 0.01, "exact_ci": [0.0, 0.03], "cer": 0.9}}


def save_untrained(folder: Path) -> Path:
    """A bundle of a small recognizer with random weights, which reads different images differently."""
    torch.manual_seed(7)
    chosen = recognizer_settings("query-digits-nano")
    height, width = chosen.encoder.image
    recognizer = build(chosen, Codec(DIGITS, 2))
    # Fresh weights read almost the same in every image; larger ones tell images apart.
    with torch.no_grad():
        for parameter in recognizer.parameters():
            parameter.mul_(3)
    save_bundle(
        folder,
        recognizer=recognizer,
        codec=Codec(DIGITS, 2),
        processor=ImageProcessor(height=height, width=width),
        decode=DecodeSettings(n_best=3, vote_floor=0.0),
        metrics=METRICS,
        provenance={"dataset": "none", "seed": "7"},
        name="untrained",
    )
    return folder


def picture(seed: int, height: int = 40, width: int = 56) -> bytes:
    """A PNG of blurred noise and a few strokes, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return encode_image(np.asarray(small.resize((width, height), Image.Resampling.NEAREST)))


def huge(width: int, height: int) -> bytes:
    """A small file that holds a large white image."""
    buffer = io.BytesIO()
    Image.new("1", (width, height), 1).save(buffer, "PNG")
    return buffer.getvalue()


def upload(*frames: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("frames", ("../../etc/passwd", frame)) for frame in frames]


def in_base64(*frames: bytes) -> dict[str, list[str]]:
    return {"frames": [b64encode(frame).decode() for frame in frames]}


def assert_same_reading(answer: dict[str, Any], expected: Prediction) -> None:
    assert answer["text"] == expected.text
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert [found["text"] for found in answer["n_best"]] == [found.text for found in expected.n_best]
    assert [(vote["frame"], vote["text"]) for vote in answer["votes"]] == [
        (ballot.frame, ballot.text) for ballot in expected.votes
    ]
    for vote, ballot in zip(answer["votes"], expected.votes, strict=True):
        assert vote["confidence"] == pytest.approx(ballot.confidence, abs=1e-4)
        assert vote["weight"] == pytest.approx(ballot.weight, abs=1e-4)


def assert_refused(
    response: httpx.Response,
    status: int,
    code: str,
    words: str,
    item: int | None = None,
) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    named = {"request_id": response.headers["x-request-id"]}
    assert response.json() == {"error": {"code": code, "message": error["message"], "item": item, **named}}
    assert words in error["message"]
    assert error["message"].endswith(".")
