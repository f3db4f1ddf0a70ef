"""Memory of reading is counted from the tensors that live together."""

import numpy as np
import pytest
import torch

from glyphrun.engine import Engine
from glyphrun.evaluation.footprint import memory_mib
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec

FRAME = encode_image(np.zeros((40, 40, 3), np.uint8))


@pytest.fixture(scope="module")
def nano() -> Engine:
    codec = Codec(DIGITS, 2)
    return Engine(build(recognizer_settings("query-digits-nano"), codec), codec, ImageProcessor(height=40, width=40))


def test_memory_is_that_of_the_weights_and_of_what_reading_adds(nano: Engine) -> None:
    weights = sum(weight.numel() * 4 for weight in nano.recognizer.parameters()) / 2**20
    one, eight = memory_mib(nano, [FRAME]), memory_mib(nano, [FRAME] * 8)
    assert weights < one < weights + 0.5
    assert 7 < (eight - weights) / (one - weights) < 8.5


def test_memory_does_not_grow_from_one_reading_to_the_next(nano: Engine) -> None:
    assert memory_mib(nano, [FRAME]) == memory_mib(nano, [FRAME])


def test_twenty_layers_that_follow_each_other_take_no_more_than_two_at_once(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, encode = memory_mib(nano, [FRAME]), nano.recognizer.encode

    def after_twenty(pixels: torch.Tensor, *rest: torch.Tensor) -> object:
        for _ in range(20):
            pixels = pixels + 1
        return encode(pixels, *rest)

    monkeypatch.setattr(nano.recognizer, "encode", after_twenty)
    assert memory_mib(nano, [FRAME]) - before < 2 * pixels_mib()


def pixels_mib() -> float:
    return 3 * 40 * 40 * 4 / 2**20
