"""What was encoded once is read by any settings as if it had been encoded for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.images import Frame, FrameStack, stack_frames
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.prediction import Prediction
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

TOGETHER = [
    {},
    {"search": "beam", "width": 4},
    {"windows": 3, "window_frames": 2},
    {"windows": 3, "window_frames": 2, "vote": "majority", "early_exit": "decided", "vote_floor": 0.0},
    {"windows": 4, "window_frames": 2, "early_exit": 0.2},
]
ALONE = [{}, {"search": "beam", "width": 3}, {"vote": "rover"}, {"early_exit": "decided", "vote_floor": 0.0}]


def engine_of(name: str, changes: dict) -> Engine:
    torch.manual_seed(5)
    settings = recognizer_settings(name, changes)
    recognizer = build(settings, Codec(DIGITS, 2))
    with torch.no_grad():  # fresh weights read every frame alike
        for parameter in recognizer.parameters():
            parameter.mul_(2)
    return Engine(
        recognizer, Codec(DIGITS, 2), processor_for(settings), precision="float32", device=torch.device("cpu")
    )


def items(engine: Engine) -> list[FrameStack]:
    rng = np.random.default_rng(0)
    height, varies = engine.processor.height, engine.processor.varies
    stacks = []
    for count in (1, 3, 7, 2, 5, 4):
        widths = rng.integers(30, 90, count) if varies else np.full(count, engine.processor.width)
        frames = [rng.integers(0, 256, (3, height, int(width)), np.uint8) for width in widths]
        stacks.append(stack_frames([Frame(frame, frame.shape[1:]) for frame in frames]))
    return stacks


def assert_same(one: Prediction, other: Prediction) -> None:
    assert one.text == other.text
    assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert [(ballot.frame, ballot.frames, ballot.text) for ballot in one.votes] == [
        (ballot.frame, ballot.frames, ballot.text) for ballot in other.votes
    ]


@pytest.mark.parametrize(
    ("name", "changes", "settings"),
    [
        *(("parseq-nano", {"fusion": fusion}, one) for fusion in ("concatenate", "mean") for one in TOGETHER),
        *(("query-digits-nano", {}, one) for one in TOGETHER if "search" not in one),
        *(("parseq-nano", {}, one) for one in ALONE),
        *(("line-ctc-nano", {}, one) for one in ALONE),
        *(("trocr-nano", {}, one) for one in ALONE),
    ],
)
def test_what_was_encoded_once_is_read_as_if_it_had_been_for_these_settings(name, changes, settings):
    plain = engine_of(name, changes)
    stacks = items(plain)
    batches = plain.encode(stacks)
    assert sorted(number for numbers, _ in batches for number in numbers) == list(range(len(stacks)))
    engine = plain.with_settings(DecodeSettings.model_validate(settings))
    for numbers, encoded in batches:
        for number, found in zip(numbers, engine.decode(encoded), strict=True):
            assert_same(found, engine.read_prepared([stacks[number]])[0])


def test_settings_that_the_recognizer_cannot_follow_are_refused():
    with pytest.raises(ValueError, match="reads every frame alone"):
        engine_of("parseq-nano", {}).with_settings(DecodeSettings(windows=2, window_frames=3))
