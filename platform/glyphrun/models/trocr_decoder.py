"""The text decoder of a TrOCR over the modules of transformers, for beams that share what they have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.models.layers import KeyValue, attend
from glyphrun.models.trocr_weights import is_tied


@dataclass(frozen=True)
class TextState:
    """Caches of a generation, a pair for each layer: memory and content so far, each shared by the beams of an item.

    content holds what every beam ever was at each of the P steps, (B, heads, P·width, d), and lineage says which of it is
    a beam's own past: (B, width, P·width) bool. So beams that continue from others move no keys and no values.
    """

    memory: list[KeyValue]
    memory_mask: Tensor | None
    content: list[KeyValue]
    lineage: Tensor
    position: int

    def reorder(self, beams: Tensor) -> TextState:
        """beams: (B·width,) long."""
        return replace(self, lineage=self.lineage.flatten(0, 1)[beams].view_as(self.lineage))

    def keep(self, items: Tensor) -> TextState:
        """items: (K,) long."""
        return replace(
            self,
            memory=[(keys[items], values[items]) for keys, values in self.memory],
            memory_mask=None if self.memory_mask is None else self.memory_mask[items],
            content=[(keys[items], values[items]) for keys, values in self.content],
            lineage=self.lineage[items],
        )


class TextDecoder(nn.Module):
    """A post-norm transformer decoder (arXiv 2109.10282) that reads a beam's step and a whole label in the same pass.

    Attention dropout and layer dropout, which no published model uses, are left out.
    """

    def __init__(self, published: Any, length: int, *, pad_has_no_place: bool) -> None:
        """published: a TrOCRForCausalLM, whose modules are taken over; length: the most tokens that are fed.

        pad_has_no_place: with positions as waves, the published model gives its padding token none.
        """
        super().__init__()
        decoder, config = published.model.decoder, published.config
        self.embed_tokens = decoder.embed_tokens
        self.layernorm_embedding = decoder.layernorm_embedding or nn.Identity()
        self.layers = decoder.layers
        self.dropout = nn.Dropout(config.dropout)
        # An output layer that is the embedding is stored once.
        self.head = None if is_tied(published) else published.output_projection
        self.embed_positions = decoder.embed_positions if config.use_learned_position_embeddings else None
        self.without_place = config.pad_token_id if pad_has_no_place and self.embed_positions is None else None
        if self.embed_positions is None:
            first = config.pad_token_id + 1
            # Computed anew: transformers keeps the waves outside its state and loses them while it loads weights.
            waves = decoder.embed_positions.get_embedding(first + length, config.hidden_size, config.pad_token_id)
            self.register_buffer("waves", waves[first:], persistent=False)

    def memory_keys_values(self, memory: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of every layer; memory: (B, S, D)."""
        return [_keys_values(layer.encoder_attn, memory) for layer in self.layers]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        past: list[KeyValue],
        mask: Tensor | None,
        memory: list[KeyValue],
        memory_mask: Tensor | None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits of what follows each token, and the keys and values of past and present.

        tokens: (B, Q) long at positions (Q,) or (1,) long: the tokens of a label, or the beams of an item. mask: bool
        broadcastable to (B, heads, Q, P + Q), True = seen; memory_mask: to (B, heads, Q, S).
        """
        x = self.dropout(self.layernorm_embedding(self.embed_tokens(tokens) + self._places(tokens, positions)))
        content = []
        for number, (layer, seen) in enumerate(zip(self.layers, memory, strict=True)):
            cache = _keys_values(layer.self_attn, x)
            if past:
                cache = (torch.cat([past[number][0], cache[0]], dim=2), torch.cat([past[number][1], cache[1]], dim=2))
            content.append(cache)
            x = layer.self_attn_layer_norm(x + self.dropout(_attention(layer.self_attn, x, cache, mask)))
            x = layer.encoder_attn_layer_norm(x + self.dropout(_attention(layer.encoder_attn, x, seen, memory_mask)))
            inner = F.dropout(layer.activation_fn(layer.fc1(x)), layer.activation_dropout, self.training)
            x = layer.final_layer_norm(x + self.dropout(layer.fc2(inner)))
        return F.linear(x, self.embed_tokens.weight) if self.head is None else self.head(x), content

    def _places(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self.embed_positions is not None:
            placed: Tensor = self.embed_positions(tokens, position_ids=positions)
            return placed
        placed = self.get_buffer("waves")[positions]
        if self.without_place is not None:
            placed = torch.where((tokens == self.without_place).unsqueeze(-1), 0.0, placed)
        return placed


def _split(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, S, D) → (B, heads, S, d)


def _keys_values(attention: Any, source: Tensor) -> KeyValue:
    return _split(attention, attention.k_proj(source)), _split(attention, attention.v_proj(source))


def _attention(attention: Any, query: Tensor, keys_values: KeyValue, mask: Tensor | None) -> Tensor:
    mixed = attend(_split(attention, attention.q_proj(query)), keys_values, mask)
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(-2))
    return projected
