"""What a training starts from: fresh or transferred weights, trained in full or through LoRA."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from glyphrun.data.batches import FrameArrays
from glyphrun.models.lora import LoraSettings, apply_lora
from glyphrun.models.recognizer import ModelSettings, Recognizer, TokenSpace
from glyphrun.models.transfer import Mismatch, Transferred, transfer
from glyphrun.models.weights import load_weights, weights_origin
from glyphrun.models.zoo import build
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec


class StartSettings(BaseModel):
    """weights: a published name, a url or a path (``models.weights``), None for fresh ones; mismatch: what may differ.

    weights_charset and weights_image (height and width) say what the weights were trained for, where neither a published
    name nor a bundle does. Hub models have their weights from the recognizer's own ``source`` instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    weights_charset: str | None = Field(None, min_length=1)
    weights_image: tuple[int, int] | None = None
    mismatch: Mismatch = "fail"
    lora: LoraSettings = LoraSettings()


def start_recognizer(
    settings: ModelSettings, tokens: TokenSpace, start: StartSettings, seed: int
) -> tuple[Recognizer, list[Transferred]]:
    """A recognizer ready to be trained, and what became of each transferred tensor (none if weights are fresh).

    The same settings and seed give the same recognizer, so a checkpoint need not hold what LoRA keeps frozen.
    Raises WeightsError for weights that cannot be had or do not fit, ValueError for LoRA that does not apply.
    """
    tensors = None if start.weights is None else load_weights(start.weights)
    torch.manual_seed(seed)
    recognizer = build(settings, tokens)
    moved: list[Transferred] = []
    if start.weights is not None and tensors is not None:
        origin = weights_origin(start.weights)
        moved = transfer(
            recognizer,
            tensors,
            source_charset=start.weights_charset or origin.charset,
            charset=tokens.charset,
            mismatch=start.mismatch,
            source_image=start.weights_image or origin.image,
        )
    apply_lora(recognizer, start.lora)
    return recognizer, moved


def check_samples(recognizer: Recognizer, codec: Codec | SubwordCodec, arrays: FrameArrays) -> None:
    """Refuse samples that the recognizer can never be trained on, by name. Raises ValueError."""
    firsts = arrays.offsets[:-1]
    sizes = np.maximum.reduceat(arrays.sizes, firsts, axis=0).tolist()
    lengths = [len(codec.encode(text)) + 1 for text in arrays.texts]
    recognizer.check([(height, width) for height, width in sizes], lengths, arrays.sample_ids)
