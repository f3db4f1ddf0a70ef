"""Multi-head attention with reusable keys and values, and the two-stream decoder layer of PARSeq."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each (B, heads, S, D / heads)."""


def attend(query: Tensor, keys_values: KeyValue, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; query: (B, heads, Q, d), mask: bool broadcastable to (B, heads, Q, S), True = seen.

    Training on a CPU avoids the fused kernel, whose backward pass there costs more than the two products it saves.
    """
    keys, values = keys_values
    if query.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, heads, Q, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(values.dtype) @ values


def linear_beside(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y + x·aᵀ·bᵀ; x: (…, inputs), a: (rank, inputs), b: (outputs, rank) and y: (…, outputs), which is read once."""
    low = F.linear(x, a)  # (…, rank)
    return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.t()).view(y.shape)


class Attention(nn.Module):
    """Attention whose keys and values can be computed once and used for many queries.

    The parameters have the names and shapes of ``torch.nn.MultiheadAttention``, as in published checkpoints. beside: the
    two factors of an update of the input projection, whose product is never added to it (``models.worn``).
    """

    beside: tuple[Tensor, Tensor] | None = None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split over {heads} heads: choose a multiple")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, D) → (B, heads, S, d)

    def _projected(self, x: Tensor, rows: slice) -> Tensor:
        """x: (B, S, D) → (B, S, as many as there are rows)."""
        y = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        if self.beside is None:
            return y
        a, b = self.beside
        return linear_beside(y, x, a, b[rows])

    def keys_values(self, source: Tensor) -> KeyValue:
        """source: (B, S, D) → keys and values, each (B, heads, S, d)."""
        keys, values = self._projected(source, slice(source.shape[-1], None)).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, query: Tensor, keys_values: KeyValue, mask: Tensor | None = None) -> Tensor:
        """query: (B, Q, D); mask: bool broadcastable to (B, heads, Q, S) → (B, Q, D)."""
        projected = self._split(self._projected(query, slice(query.shape[-1])))
        mixed = attend(projected, keys_values, mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer with a query stream and a content stream (arXiv 2207.06966, section 3.2)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.self_attn = Attention(width, heads)
        self.cross_attn = Attention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm_q = nn.LayerNorm(width)
        self.norm_c = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def content_keys_values(self, content: Tensor) -> KeyValue:
        """content: (B, L, D) → what both streams attend to in this layer."""
        return self.self_attn.keys_values(self.norm_c(content))

    def query_stream(
        self, query: Tensor, content: KeyValue, memory: KeyValue, mask: Tensor | None, memory_mask: Tensor | None
    ) -> Tensor:
        """query: (B, Q, D) → (B, Q, D)."""
        return self._stream(query, self.norm_q(query), content, memory, mask, memory_mask)

    def content_stream(
        self, content: Tensor, keys_values: KeyValue, memory: KeyValue, mask: Tensor | None, memory_mask: Tensor | None
    ) -> Tensor:
        """content: (B, L, D) → the content that the next layer sees, (B, L, D)."""
        return self._stream(content, self.norm_c(content), keys_values, memory, mask, memory_mask)

    def _stream(
        self,
        x: Tensor,
        normed: Tensor,
        content: KeyValue,
        memory: KeyValue,
        mask: Tensor | None,
        memory_mask: Tensor | None,
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(normed, content, mask))
        x = x + self.dropout(self.cross_attn_many(self.norm1(x), memory, memory_mask))
        return x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(self.norm2(x))))))

    def cross_attn_many(self, x: Tensor, memory: KeyValue, memory_mask: Tensor | None) -> Tensor:
        """Beams of one item share its keys and values: x has B·width rows where memory has B."""
        items, rows = memory[0].shape[0], x.shape[0]
        grouped = x.reshape(items, -1, x.shape[-1])  # (B, width·Q, D)
        return self.cross_attn(grouped, memory, memory_mask).reshape(rows, -1, x.shape[-1])
