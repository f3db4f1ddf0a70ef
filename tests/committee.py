"""Members of an ensemble, of several kinds, and what they read."""

from __future__ import annotations

import numpy as np

from glyphrun.engine import Engine
from glyphrun.images import encode_image
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.recognizer import Recognizer
from glyphrun.prediction import Prediction
from glyphrun.recipe import processor_for
from stretched import CODECS, ENCODER, engine_for, recognizer

ENCODERS = {"query-digits": EncoderSettings(image=(16, 40), patch=(8, 8), width=16, depth=1, heads=2)}


def member_recognizer(kind: str, seed: int, fusion: str = "attention") -> Recognizer:
    """Query digits see wider pictures than the others."""
    return recognizer(kind, fusion, seed=seed, encoder=ENCODERS.get(kind, ENCODER))


def member(kind: str, seed: int, fusion: str = "attention", **settings: object) -> Engine:
    made = member_recognizer(kind, seed, fusion)
    decode = {"vote_floor": 0.0, "search": "beam", "width": 3, **settings}
    return engine_for(made, CODECS[kind], processor_for(made.settings), **decode)


def different_kinds() -> dict[str, Engine]:
    return {"one": member("parseq", 1), "two": member("query-digits", 2), "line": member("line-ctc", 3)}


def tracklets() -> list[list[bytes]]:
    """Twelve of one to four frames."""
    rng = np.random.default_rng(0)
    return [
        [encode_image(rng.integers(0, 40 * (1 + number % 6), (20, 30, 3), np.uint8)) for _ in range(1 + number % 4)]
        for number in range(12)
    ]


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def fail(*_: object) -> None:
    """In place of a method of a recognizer."""
    raise RuntimeError("out of tune")
