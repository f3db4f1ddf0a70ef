"""TrOCRs small enough to be compared number by number: as published ones are made, and new ones for letters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from glyphrun.models.recognizer import Memory
from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.text import Codec

SIDE, PATCH, WIDTH = 32, 8, 16
KINDS = ["base", "large-stage1", "small"]
VISION = {"width": 16, "depth": 2, "heads": 2, "patch": (8, 8)}
TEXT = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0}


@dataclass(frozen=True)
class Subwords:
    """A codec's numbers, as a recognizer sees them."""

    num_tokens: int = 40
    max_length: int = 10
    begin: int = 2
    end: int = 2
    pad: int = 1
    charset: str = ""


def tiny(kind: str) -> VisionEncoderDecoderModel:
    """What the published models of a size have in common with each other, in a few thousand random weights."""
    torch.manual_seed(4)
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    text = TrOCRConfig(
        vocab_size=40,
        d_model=24 if kind == "small" else WIDTH,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
        cross_attention_hidden_size=None if kind == "small" else WIDTH,
        activation_function="relu" if kind == "large-stage1" else "gelu",
        use_learned_position_embeddings=kind != "large-stage1",
        layernorm_embedding=kind != "large-stage1",
        scale_embedding=kind != "base",
        tie_word_embeddings=kind == "base",
    )
    encoder = DeiTModel(DeiTConfig(**vision)) if kind == "small" else ViTModel(ViTConfig(qkv_bias=False, **vision))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=TrOCRForCausalLM(text)).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name else 0.25))
    return model


def taught(model: VisionEncoderDecoderModel, frames: Tensor) -> None:
    """Half an education: what it writes ends somewhere, and is not always the same."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, 40, (len(frames), 9), generator=generator)
    for row, length in enumerate(torch.randint(0, 9, (len(frames),), generator=generator).tolist()):
        labels[row, length:] = -100
        labels[row, length] = 2
    context = torch.cat([torch.full_like(labels[:, :1], 2), labels[:, :-1].clamp_min(1)], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = model(frames, decoder_input_ids=context, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loaded(model: VisionEncoderDecoderModel, folder: Path, **changes: Any) -> TrOCR:
    model.save_pretrained(folder)
    settings = {"source": str(folder), "image": (SIDE, SIDE), **changes}
    return TrOCR(TrOCRSettings(**settings), Subwords()).eval()


def small(tokens: Any = None, **changes: Any) -> TrOCR:
    """A new TrOCR for letters, with weights that tell pictures from each other."""
    torch.manual_seed(7)
    settings = {"encoder": VISION, "decoder": TEXT, "image": (24, 48), "vocabulary": "charset", **changes}
    model = TrOCR(TrOCRSettings(**settings), tokens or Codec("abcdef", 6)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name else 0.25))
        for layer in model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
    return model


def pictures(items: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(items, 1, 3, height, width, generator=torch.Generator().manual_seed(1))


def encoded(model: TrOCR, frames: Tensor, sizes: list[tuple[int, int]] | None = None) -> Memory:
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    return model.encode(frames, mask, None if sizes is None else torch.tensor(sizes)[:, None])


def step_by_step(model: TrOCR, memory: Memory, tokens: Tensor) -> Tensor:
    """Log-probabilities after each of the given tokens, (B, L) from begin on → (B, L, V)."""
    state, steps = model.start(memory, 1), []
    for column in tokens.T:
        log_probs, state = model.step(state, column)
        steps.append(log_probs)
    return torch.stack(steps, dim=1)


def rows_of(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows)
