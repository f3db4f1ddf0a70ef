"""The parts of a Vision Transformer (arXiv 2010.11929), with the parameter names of timm, which published weights have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.models.layers import attend

NORM_EPSILON = 1e-6  # that of published weights; torch's own default is 1e-5


class SelfAttention(nn.Module):
    """Multi-head attention among the places of a frame."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, S, D) → (N, S, D)."""
        query, keys, values = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, S, d)
        projected: Tensor = self.proj(attend(query, (keys, values), None).transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, at each place alone."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, S, D) → (N, S, D)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class Block(nn.Module):
    """A pre-norm transformer block. drop_path: the share of frames that pass it by in training (arXiv 1603.09382)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, S, D) → (N, S, D)."""
        x = x + self._or_passed_by(self.attn(self.norm1(x)))
        return x + self._or_passed_by(self.mlp(self.norm2(x)))

    def _or_passed_by(self, added: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return added
        kept = 1 - self.drop_path
        # Divided by the share that is kept: at inference, where all are, the sum has the size that it had on average.
        return added * added.new_empty(len(added), 1, 1).bernoulli_(kept).div_(kept)


def initialise(module: nn.Module) -> None:
    """The weights that a Vision Transformer's linear layers start from, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            normal_(layer.weight)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def normal_(weights: Tensor, std: float = 0.02) -> None:
    """Normally distributed weights, in place, from uniform ones: so they are a seed's alone, not those of torch's version."""
    # uniform_ may give −1, whose inverse is infinite.
    weights.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)
