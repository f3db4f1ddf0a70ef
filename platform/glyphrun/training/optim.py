"""AdamW with decay where it belongs, and a learning rate that is a function of the step alone."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

UNDECAYED = (
    *("pos_embed", "queries", "query", "embedding.weight", "position_embeddings", "cls_token", "distillation_token"),
    *("embed_tokens.weight", "embed_positions.weight", "frame_embedding.table"),
)
Schedule = Literal["cosine", "one-cycle"]


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) of what is not frozen; biases, norms, embeddings and queries are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2 and not name.endswith(UNDECAYED)
        (decayed if matrix else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int, schedule: Schedule) -> float:
    """The rate for a step counted from 0: a linear warm-up, then a cosine down to 0.

    «one-cycle» warms up along a cosine over the first 30 % of the steps from a 25th of the peak (arXiv 1708.07120).
    """
    if schedule == "one-cycle":
        rise = max(int(0.3 * steps), 1)
        if step < rise:
            return peak * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
        return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
