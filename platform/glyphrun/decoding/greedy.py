"""Greedy search: the most probable token at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from glyphrun.models.recognizer import Generative, Memory, TokenHypothesis


@torch.no_grad()
def greedy(recognizer: Generative, memory: Memory) -> tuple[Tensor, Tensor]:
    """The most probable token at every step and its log-probability, each (B, max_length + 1).

    Items that have ended leave the batch; what follows their end is «end» with certainty.
    """
    items, device = len(memory.tokens), memory.tokens.device
    chosen = torch.full((items, recognizer.max_length + 1), recognizer.end, device=device)
    scores = torch.zeros(chosen.shape, device=device)
    state = recognizer.start(memory, 1)
    tokens = torch.full((items,), recognizer.begin, device=device)
    active = torch.arange(items, device=device)
    for position in range(recognizer.max_length + 1):
        log_probs, state = recognizer.step(state, tokens)
        best, tokens = log_probs.max(-1)
        chosen[active, position], scores[active, position] = tokens, best
        going_on = (tokens != recognizer.end).nonzero().squeeze(1)
        if not len(going_on):
            break
        if len(going_on) < len(tokens):
            state, tokens, active = state.keep(going_on), tokens[going_on], active[going_on]
    return chosen, scores


def cut_at_end(tokens: Tensor, log_probs: Tensor, end: int) -> list[TokenHypothesis]:
    """What has been read up to each row's first end; tokens, log_probs: (N, max_length + 1).

    A reading that never ends has one token more than the longest label.
    """
    readings = []
    for row, scores in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = row.index(end) if end in row else len(row)
        kept = tuple(scores[: length + 1])
        readings.append(TokenHypothesis(tuple(row[:length]), sum(kept), kept))
    return readings
