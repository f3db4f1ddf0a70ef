"""PARSeq: a permuted autoregressive sequence recognizer (Bautista and Atienza, ECCV 2022, arXiv 2207.06966)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.inputs import InputSettings
from glyphrun.models.encoder import EncoderSettings, FrameEncoder
from glyphrun.models.fusion import Fusion, TemporalFusion
from glyphrun.models.layers import DecoderLayer, KeyValue
from glyphrun.models.permutations import number_of_orders, order_masks, sample_orders
from glyphrun.models.recognizer import Memory, ModelSettings, Recognizer


class PARSeqSettings(ModelSettings):
    """Everything that fixes the shape and the training objective of a PARSeq; ``fusion`` none reads frames alone."""

    kind: Literal["parseq"] = "parseq"
    encoder: EncoderSettings = EncoderSettings()
    decoder_heads: int = Field(12, ge=1)
    decoder_depth: int = Field(1, ge=1)
    decoder_mlp_ratio: float = Field(4.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    permutations: int = Field(6, ge=1)
    fusion: Fusion = "none"

    @property
    def input(self) -> InputSettings:
        """Frames squeezed to the encoder's size."""
        return InputSettings(height=self.encoder.image[0], width=self.encoder.image[1])


class TokenEmbedding(nn.Module):
    """Token ids to vectors of about unit variance after the scaling by √D."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding.embedding_dim**0.5 * self.embedding(tokens)


class Decoder(nn.Module):
    """The stack of two-stream layers; content is updated in every layer but the last."""

    def __init__(self, settings: PARSeqSettings) -> None:
        super().__init__()
        width = settings.encoder.width
        self.layers = nn.ModuleList(
            DecoderLayer(width, settings.decoder_heads, settings.decoder_mlp_ratio, settings.dropout)
            for _ in range(settings.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)

    def stack(self) -> list[DecoderLayer]:
        """The layers in order."""
        return [cast(DecoderLayer, layer) for layer in self.layers]

    def memory_keys_values(self, memory: Memory) -> list[KeyValue]:
        """Cross-attention keys and values of every layer, computed once for any number of passes."""
        return [layer.cross_attn.keys_values(memory.tokens) for layer in self.stack()]

    def forward(
        self,
        query: Tensor,
        content: Tensor,
        memory: list[KeyValue],
        memory_mask: Tensor | None,
        content_mask: Tensor | None,
        query_mask: Tensor | None,
    ) -> Tensor:
        """query: (B, Q, D), content: (B, L, D), masks bool with True = seen → (B, Q, D)."""
        for number, (layer, keys_values) in enumerate(zip(self.stack(), memory, strict=True), start=1):
            seen = layer.content_keys_values(content)
            query = layer.query_stream(query, seen, keys_values, query_mask, memory_mask)
            if number < len(memory):
                content = layer.content_stream(content, seen, keys_values, content_mask, memory_mask)
        return self.norm(query)


@dataclass(frozen=True)
class PARSeqState:
    """Caches of a generation: memory (B items) and content so far (B·width rows), both a pair for each layer."""

    memory: list[KeyValue]
    memory_mask: Tensor | None
    content: list[KeyValue]
    width: int
    position: int

    def reorder(self, beams: Tensor) -> PARSeqState:
        """beams: (B·width,) long."""
        return replace(self, content=[(keys[beams], values[beams]) for keys, values in self.content])

    def keep(self, items: Tensor) -> PARSeqState:
        """items: (K,) long."""
        rows = (items.unsqueeze(1) * self.width + torch.arange(self.width, device=items.device)).flatten()
        kept = self.reorder(rows)
        memory = [(keys[items], values[items]) for keys, values in self.memory]
        mask = None if self.memory_mask is None else self.memory_mask[items]
        return replace(kept, memory=memory, memory_mask=mask)


class PARSeq(Recognizer):
    """Frames → characters, one position query at a time or all at once.

    Token ids: 0 end, 1..n characters, n + 1 begin, n + 2 pad; the head predicts end and the characters.
    """

    end = 0
    settings: PARSeqSettings

    def __init__(self, settings: PARSeqSettings, characters: int, max_length: int) -> None:
        super().__init__()
        width = settings.encoder.width
        self.settings = settings
        self.reads_frames_together = settings.fusion != "none"
        self.begin, self.pad, self.max_length = characters + 1, characters + 2, max_length
        self.encoder = FrameEncoder(settings.encoder)
        self.fusion = TemporalFusion(settings.fusion, width)
        self.decoder = Decoder(settings)
        self.head = nn.Linear(width, characters + 1)
        self.text_embed = TokenEmbedding(characters + 3, width)
        self.pos_queries = nn.Parameter(torch.empty(1, max_length + 1, width))
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.trunc_normal_(self.pos_queries, std=0.02)
        nn.init.trunc_normal_(self.text_embed.embedding.weight, std=0.02)

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> Memory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool, at least one frame an item."""
        return self.fusion(self.encoder(frames[frame_mask]), frame_mask)  # the encoder sees (N, 3, H, W)

    def regroup(self, memory: Memory, rows: Tensor, mask: Tensor) -> Memory:
        """Other items out of encoded frames; rows: (G, W) long, mask: (G, W) bool."""
        return self.fusion(memory.frame_tokens[rows[mask]], mask)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of the modules that see, fuse and read."""
        return {
            "vision": ("encoder",),
            "projector": ("fusion",),
            "decoder": ("decoder", "head", "text_embed", "pos_queries"),
        }

    def _content(self, tokens: Tensor) -> Tensor:
        """tokens: (B, L) long from begin on → (B, L, D); begin has no position."""
        embedded = self.text_embed(tokens)
        placed = embedded[:, 1:] + self.pos_queries[:, : tokens.shape[1] - 1]
        return self.dropout(torch.cat([embedded[:, :1], placed], dim=1))

    def _queries(self, items: int, count: int) -> Tensor:
        return self.dropout(self.pos_queries[:, :count].expand(items, -1, -1))

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a token over the sampled orders; targets: (B, L) long, begin … end, pad."""
        context, expected = targets[:, :-1], targets[:, 1:]
        seen = ((context != self.pad) & (context != self.end))[:, None, None, :]  # (B, 1, 1, L - 1)
        memory_keys_values = self.decoder.memory_keys_values(memory)
        memory_mask = _over_heads(memory.mask)
        content = self._content(context)
        total, count = memory.tokens.new_zeros((), dtype=torch.float32), 0
        orders = sample_orders(targets.shape[1] - 2, self.settings.permutations)
        for number, order in enumerate(orders):
            content_mask, query_mask = (mask.to(targets.device) for mask in order_masks(order))
            decoded = self.decoder(
                self._queries(*context.shape),
                content,
                memory_keys_values,
                memory_mask,
                content_mask & seen,
                query_mask & seen,
            )
            logits = self.head(decoded).float()  # (B, L - 1, n + 1)
            total = total + F.cross_entropy(
                logits.flatten(0, 1), expected.flatten(), ignore_index=self.pad, reduction="sum"
            )
            count += int((expected != self.pad).sum())
            if number == 1:
                # Only the first two orders see an honest context for end; later ones would learn it from its position.
                expected = expected.masked_fill(expected == self.end, self.pad)
        return total / count

    def loss_terms(self, targets: Tensor) -> Tensor:
        """How many terms ``loss`` is the mean of: every token in each order, but end in the first two alone."""
        expected, orders = targets[:, 1:], number_of_orders(targets.shape[1] - 2, self.settings.permutations)
        return (expected != self.pad).sum() * orders - (expected == self.end).sum() * max(orders - 2, 0)

    def start(self, memory: Memory, width: int) -> PARSeqState:
        """width: beams kept per item."""
        return PARSeqState(self.decoder.memory_keys_values(memory), memory.mask, [], width, 0)

    def step(self, state: PARSeqState, tokens: Tensor) -> tuple[Tensor, PARSeqState]:
        """tokens: (B·width,) long → log-probabilities (B·width, n + 1)."""
        content = self.text_embed(tokens).unsqueeze(1)  # (B·width, 1, D)
        if state.position:
            content = content + self.pos_queries[:, state.position - 1 : state.position]
        query = self.pos_queries[:, state.position : state.position + 1].expand(len(tokens), -1, -1)
        memory_mask = _over_heads(state.memory_mask)
        caches: list[KeyValue] = []
        for number, (layer, memory) in enumerate(zip(self.decoder.stack(), state.memory, strict=True)):
            cache = layer.content_keys_values(content)
            if state.content:
                past = state.content[number]
                cache = (torch.cat([past[0], cache[0]], dim=2), torch.cat([past[1], cache[1]], dim=2))
            caches.append(cache)
            query = layer.query_stream(query, cache, memory, None, memory_mask)
            if number + 1 < len(state.memory):
                content = layer.content_stream(content, cache, memory, None, memory_mask)
        log_probs = self.head(self.decoder.norm(query)).squeeze(1).float().log_softmax(-1)
        return log_probs, replace(state, content=caches, position=state.position + 1)

    def parallel(self, memory: Memory) -> Tensor:
        """Non-autoregressive log-probabilities of all positions from an empty context: (B, L + 1, n + 1)."""
        items = len(memory.tokens)
        begin = torch.full((items, 1), self.begin, device=memory.tokens.device)
        return self._predict(memory, begin, None, None)

    def refine(self, memory: Memory, tokens: Tensor) -> Tensor:
        """One cloze pass: every position is predicted again from all others of a reading.

        tokens: (B, L + 1) long, a first reading; what follows its first end is ignored → (B, L + 1, n + 1).
        """
        begin = torch.full_like(tokens[:, :1], self.begin)
        context = torch.cat([begin, tokens[:, :-1]], dim=1)  # (B, L + 1)
        seen = ((context == self.end).cumsum(1) == 0)[:, None, None, :]
        length = context.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        own_answer = torch.eye(length, dtype=torch.bool, device=tokens.device).roll(1, dims=1)
        own_answer[-1, 0] = False  # the last position's answer is not part of the context
        return self._predict(memory, context, causal & seen, ~own_answer & seen)

    def _predict(
        self, memory: Memory, context: Tensor, content_mask: Tensor | None, query_mask: Tensor | None
    ) -> Tensor:
        decoded = self.decoder(
            self._queries(len(context), self.max_length + 1),
            self._content(context),
            self.decoder.memory_keys_values(memory),
            _over_heads(memory.mask),
            content_mask,
            query_mask,
        )
        return self.head(decoded).float().log_softmax(-1)


def _over_heads(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, None, :]  # (B, S) → (B, 1, 1, S)
