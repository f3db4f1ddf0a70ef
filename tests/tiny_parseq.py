"""A PARSeq small enough that every text it can read is enumerated."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.recognizer import Memory

ENCODER = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)


def parseq(characters: int, max_length: int, end_bias: float = 0.0) -> PARSeq:
    torch.manual_seed(11)
    model = PARSeq(PARSeqSettings(encoder=ENCODER, decoder_heads=2, decoder_depth=2), characters, max_length).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        model.pos_queries.mul_(40)
        model.text_embed.embedding.weight.mul_(20)
        model.head.weight.mul_(4)
        model.head.bias[0] += end_bias
    return model


def memory_of(items: int) -> Memory:
    """Features that differ more between items than those of an encoder at its first weights."""
    tokens = torch.randn(items, 6, ENCODER.width, generator=torch.Generator().manual_seed(2)) * 4
    return Memory(tokens, None, tokens, torch.ones(items, 1, dtype=torch.bool))


def of_items(memory: Memory, items: list[int]) -> Memory:
    """Some of the items that ``memory_of`` makes."""
    tokens = memory.tokens[items]
    return Memory(tokens, None, tokens, memory.frame_mask[items])


def texts(characters: int, max_length: int) -> list[tuple[int, ...]]:
    """Every text of so many characters at most."""
    alphabet = range(1, characters + 1)
    return [text for length in range(max_length + 1) for text in product(alphabet, repeat=length)]


@torch.no_grad()
def log_prob(model: PARSeq, memory: Memory, reading: tuple[int, ...]) -> Tensor:
    """Of a reading and its end, for every item: (B,)."""
    state, total = model.start(memory, 1), torch.zeros(len(memory.tokens))
    for given, following in zip((model.begin, *reading), (*reading, model.end), strict=True):
        log_probs, state = model.step(state, torch.full((len(memory.tokens),), given))
        total = total + log_probs[:, following]
    return total
