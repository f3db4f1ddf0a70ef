"""Costs are counted from what is computed."""

import numpy as np
import torch

from glyphrun.engine import Engine
from glyphrun.evaluation.cost import count_gflops, count_parameters, measure_latency
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec


def engine(name: str, height: int, width: int) -> Engine:
    recognizer = build(recognizer_settings(name), Codec(DIGITS, 2))
    return Engine(recognizer, Codec(DIGITS, 2), ImageProcessor(height=height, width=width))


def test_parseq_tiny_costs_what_its_paper_says():
    tiny = engine("parseq-tiny", 32, 128)
    # 0.757 G multiply-adds for the encoder, two operations each, and a decoder of three steps on top.
    assert 2 * 0.757 < count_gflops(tiny, 1) < 2 * 0.757 * 1.1
    assert all(parameter.requires_grad for parameter in tiny.recognizer.parameters())


def test_flops_grow_with_the_frames():
    nano = engine("query-digits-nano", 40, 40)
    assert 7.5 < count_gflops(nano, 8) / count_gflops(nano, 1) <= 8


def test_parameters_are_those_of_the_modules():
    nano = engine("query-digits-nano", 40, 40)
    assert count_parameters(nano) == sum(weight.numel() for weight in nano.recognizer.parameters())


def test_latency_is_measured_for_every_engine_and_threads_are_put_back():
    before = torch.get_num_threads()
    frame = encode_image(np.zeros((40, 40, 3), np.uint8))
    small, large = measure_latency(
        [engine("query-digits-nano", 40, 40), engine("parseq-small", 32, 128)], [[frame] * 2], repeats=3, threads=1
    )
    assert 0 < small.p50 <= small.p95
    assert small.p50 < large.p50
    assert torch.get_num_threads() == before
