"""Recognizers small enough to be adapted by the dozen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from glyphrun.adapters import save_adapter
from glyphrun.bundle import load_engine
from glyphrun.models.lora import LoraSettings, apply_lora, plain_buffers
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec

CODEC = Codec(DIGITS, 2)
SMALL = {"image": (16, 24), "width": 16, "depth": 1, "heads": 2}
LORA = LoraSettings(rank=3, alpha=6.0)


def recognizer(name: str = "parseq-nano", seed: int = 1, **changes: object) -> Recognizer:
    torch.manual_seed(seed)
    settings = recognizer_settings(name, {"encoder": SMALL, "decoder_heads": 2, **changes})
    return build(settings, CODEC).eval()


class SubwordReader(Recognizer):
    """A decoder of transformers whose output layer is its embedding, behind one layer that sees; the parts nest."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(1)
        self.visual = nn.ModuleDict({"blocks": nn.Linear(6, 16), "merger": nn.Linear(16, 16)})
        self.model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=20,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                tie_word_embeddings=True,
            )
        ).eval()

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"vision": ("visual",), "projector": ("visual.merger",), "decoder": ("model",)}


@torch.no_grad()
def adapt(bundle: Path, folder: Path, lora: LoraSettings, seed: int = 0) -> Path:
    """An adapter of a bundle, all that LoRA would train moved at random."""
    drawn = torch.Generator().manual_seed(seed)
    model = load_engine(bundle, torch.device("cpu"), "float32").recognizer
    apply_lora(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.2)
    for buffer in plain_buffers(model).values():
        if buffer.is_floating_point():
            buffer.mul_(1.1)
    save_adapter(folder, model, lora)
    return folder
