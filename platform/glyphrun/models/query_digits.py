"""Query digits: one shared 10-class head, asked for each position by a query, with a length head as gatekeeper.

A digit is learned once and read in any place, so numbers never seen in training are read digit by digit. The answer
space (nothing, ten one-digit and a hundred two-digit readings) is ranked exactly. The shared digit layer with position
embeddings follows the single-stage jersey recognizers discussed in arXiv 2405.13896 and its successors.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.inputs import InputSettings
from glyphrun.models.encoder import EncoderSettings, FrameEncoder
from glyphrun.models.fusion import Fusion, TemporalFusion
from glyphrun.models.layers import Attention, KeyValue
from glyphrun.models.recognizer import Memory, ModelSettings, Recognizer, TokenHypothesis

DIGITS = 10
LENGTHS = 3  # nothing readable, one digit, two digits


class QueryDigitsSettings(ModelSettings):
    """Everything that fixes the shape of a query-digits recognizer."""

    kind: Literal["query-digits"] = "query-digits"
    encoder: EncoderSettings = EncoderSettings()
    decoder_heads: int = Field(12, ge=1)
    decoder_mlp_ratio: float = Field(4.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    fusion: Fusion = "attention"

    @property
    def input(self) -> InputSettings:
        """Frames squeezed to the encoder's size."""
        return InputSettings(height=self.encoder.image[0], width=self.encoder.image[1])


class QueryReader(nn.Module):
    """A pre-norm cross-attention block in which queries do not see each other, so each can be asked alone."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_query = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: KeyValue, memory_mask: Tensor | None) -> Tensor:
        """queries: (B, Q, D) → (B, Q, D)."""
        x = queries + self.dropout(self.cross_attn(self.norm_query(queries), memory, memory_mask))
        return self.norm(x + self.dropout(self.mlp(self.norm_mlp(x))))


class QueryDigits(Recognizer):
    """Frames → a number of at most two digits, or nothing.

    Token ids are those of the charset 0123456789: digit d is token d + 1.
    """

    settings: QueryDigitsSettings

    def __init__(self, settings: QueryDigitsSettings) -> None:
        super().__init__()
        width = settings.encoder.width
        self.settings = settings
        self.reads_frames_together = settings.fusion != "none"
        self.encoder = FrameEncoder(settings.encoder)
        self.fusion = TemporalFusion(settings.fusion, width)
        self.reader = QueryReader(width, settings.decoder_heads, settings.decoder_mlp_ratio, settings.dropout)
        self.length_query = nn.Parameter(torch.empty(1, 1, width))
        self.position_queries = nn.Parameter(torch.empty(1, LENGTHS - 1, width))
        self.length_head = nn.Linear(width, LENGTHS)
        self.digit_head = nn.Linear(width, DIGITS)
        nn.init.trunc_normal_(self.length_query, std=0.02)
        nn.init.trunc_normal_(self.position_queries, std=0.02)

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> Memory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool, at least one frame an item."""
        return self.fusion(self.encoder(frames[frame_mask]), frame_mask)

    def regroup(self, memory: Memory, rows: Tensor, mask: Tensor) -> Memory:
        """Other items out of encoded frames; rows: (G, W) long, mask: (G, W) bool."""
        return self.fusion(memory.frame_tokens[rows[mask]], mask)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of the modules that see, fuse and read."""
        return {
            "vision": ("encoder",),
            "projector": ("fusion",),
            "decoder": ("reader", "length_query", "position_queries", "length_head", "digit_head"),
        }

    def _ask(self, queries: Tensor, keys_values: KeyValue, mask: Tensor | None) -> Tensor:
        items = len(keys_values[0])
        over_heads = None if mask is None else mask[:, None, None, :]
        return self.reader(queries.expand(items, -1, -1), keys_values, over_heads)  # (B, Q, D)

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood over the length and the digits; targets: (B, L) long, begin … end, pad."""
        digits = F.pad(targets[:, 1:], (0, 2))[:, :2] - 1  # (B, 2), outside 0..9 where there is no digit
        is_digit = (digits >= 0) & (digits < DIGITS)
        queries = torch.cat([self.length_query, self.position_queries], dim=1)
        read = self._ask(queries, self.reader.cross_attn.keys_values(memory.tokens), memory.mask)
        length_loss = F.cross_entropy(self.length_head(read[:, 0]).float(), is_digit.sum(1), reduction="sum")
        digit_logits = self.digit_head(read[:, 1:]).float()  # (B, 2, 10)
        digit_loss = F.cross_entropy(digit_logits[is_digit], digits[is_digit], reduction="sum")
        return (length_loss + digit_loss) / (len(targets) + is_digit.sum())

    def rank(self, memory: Memory, n: int) -> list[list[TokenHypothesis]]:
        """The n most probable of the 111 readings of each item, best first, exactly.

        The second digit is asked only for items in which a two-digit reading can still be among the n best: the best
        two-digit reading is at most as probable as «two digits» times the best first digit.
        """
        keys_values = self.reader.cross_attn.keys_values(memory.tokens)
        first_queries = torch.cat([self.length_query, self.position_queries[:, :1]], dim=1)
        read = self._ask(first_queries, keys_values, memory.mask)
        lengths = self.length_head(read[:, 0]).float().log_softmax(-1)  # (B, 3)
        first = self.digit_head(read[:, 1]).float().log_softmax(-1)  # (B, 10)
        short = torch.cat([lengths[:, :1], lengths[:, 1:2] + first], dim=1)  # (B, 11): nothing, then one digit
        best_two = lengths[:, 2] + first.amax(1)
        if n > short.shape[1]:
            undecided = torch.ones_like(best_two, dtype=torch.bool)
        else:
            undecided = best_two > short.topk(n, dim=1).values[:, -1]
        second = first.new_full(first.shape, float("-inf"))
        if bool(undecided.any()):
            keys, values = keys_values
            mask = None if memory.mask is None else memory.mask[undecided]
            asked = self._ask(self.position_queries[:, 1:], (keys[undecided], values[undecided]), mask)
            second[undecided] = self.digit_head(asked[:, 0]).float().log_softmax(-1)
        two = lengths[:, 2, None, None] + first[:, :, None] + second[:, None, :]  # (B, 10, 10)
        scores, places = torch.cat([short, two.flatten(1)], dim=1).topk(min(n, 1 + DIGITS + DIGITS**2), dim=1)
        token_scores = [lengths.tolist(), first.tolist(), second.tolist()]
        return [
            [
                _hypothesis(place, score, *(table[item] for table in token_scores))
                for score, place in zip(row, at, strict=True)
            ]
            for item, (row, at) in enumerate(zip(scores.tolist(), places.tolist(), strict=True))
        ]


def _hypothesis(
    place: int, log_prob: float, lengths: list[float], first: list[float], second: list[float]
) -> TokenHypothesis:
    """place: 0 nothing, 1..10 one digit, 11..110 two digits. The length's log-probability stands last, as end's does."""
    if place == 0:
        return TokenHypothesis((), log_prob, (lengths[0],))
    if place <= DIGITS:
        return TokenHypothesis((place,), log_prob, (first[place - 1], lengths[1]))
    tens, ones = divmod(place - 1 - DIGITS, DIGITS)
    return TokenHypothesis((tens + 1, ones + 1), log_prob, (first[tens], second[ones], lengths[2]))
