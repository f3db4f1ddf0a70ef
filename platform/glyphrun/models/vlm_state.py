"""Where the generation of a vision-language model stands."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class VLMState:
    """Keys and values of prompt, picture and reading so far, for B·width rows.

    mask: (B·width, length) bool; positions: (B·width,) long, where the next token stands.
    """

    cache: DynamicCache
    mask: Tensor
    positions: Tensor
    width: int

    def reorder(self, beams: Tensor) -> VLMState:
        """beams: (B·width,) long."""
        cache = fork(self.cache)
        cache.batch_select_indices(beams)
        return VLMState(cache, self.mask[beams], self.positions[beams], self.width)

    def keep(self, items: Tensor) -> VLMState:
        """items: (K,) long."""
        return self.reorder((items.unsqueeze(1) * self.width + torch.arange(self.width, device=items.device)).flatten())


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that grows without changing the one it came from: layers hold on to tensors that are never written into."""
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown
