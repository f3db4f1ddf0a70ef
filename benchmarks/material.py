"""What the benchmarks measure on: recognizers with random weights, their bundles, and simulated tracklets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glyphrun.bundle import save_bundle
from glyphrun.data.digits import digit_pools, mnist_digits
from glyphrun.data.simulate import SimulatorSettings, TrackletPlan, plan_tracklets
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.parseq import PARSeq
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

NUMBERS = Codec(DIGITS, 2)


def random_recognizer(
    name: str, seed: int, codec: Codec = NUMBERS, changes: Mapping[str, Any] | None = None
) -> Recognizer:
    """One of the zoo that has learned nothing, its settings changed."""
    torch.manual_seed(seed)
    return build(recognizer_settings(name, dict(changes or {})), codec)


@torch.no_grad()
def random_parseq(seed: int, codec: Codec) -> PARSeq:
    """PARSeq-Tiny that reads different images differently.

    Random weights answer alike whatever they are shown; larger queries and features make images differ.
    """
    recognizer = random_recognizer("parseq-tiny", seed, codec)
    assert isinstance(recognizer, PARSeq)
    recognizer.pos_queries.mul_(40)
    recognizer.text_embed.embedding.weight.mul_(10)
    for layer in recognizer.decoder.stack():
        layer.cross_attn.in_proj_weight.mul_(4)
        layer.cross_attn.out_proj.weight.mul_(4)
    return recognizer


def save_random_bundle(folder: Path, recognizer: Recognizer, decode: DecodeSettings = DecodeSettings()) -> None:
    """A bundle of a recognizer of numbers that has learned nothing."""
    save_bundle(
        folder,
        name=folder.name,
        recognizer=recognizer,
        codec=NUMBERS,
        processor=processor_for(recognizer.settings),
        decode=decode,
        metrics={},
        provenance={},
    )


def planned_tracklets(
    counts: Mapping[str, int], settings: SimulatorSettings, seed: int
) -> Iterator[tuple[TrackletPlan, np.ndarray]]:
    """Plans of tracklets, each with its digit images; no digit image is in two splits."""
    images, labels = mnist_digits()
    for plan in plan_tracklets(digit_pools(labels, seed), counts, settings, seed):
        yield plan, images[list(plan.digit_images)]
