"""Permutation language modelling: orders of prediction and the attention masks they mean (arXiv 2207.06966, 3.3)."""

from __future__ import annotations

import math
from itertools import permutations

import torch
from torch import Tensor


def sample_orders(characters: int, count: int) -> Tensor:
    """Orders in which the positions of a label are predicted: (K, characters + 2) long, K ≤ count.

    Positions are 0 for begin, 1..characters, characters + 1 for end. The first order is left to right. Orders come in
    mirrored pairs; the mirror of the first predicts end first, from an empty context, as non-autoregressive decoding
    does. One character has one order only, a count of one means left to right, and labels of up to four characters draw from all of them without repeats.
    Randomness comes from torch's global generator, as dropout's does.
    """
    pairs = number_of_orders(characters, count) // 2
    if pairs == 0:
        return torch.arange(characters + 2).unsqueeze(0)
    forward = torch.arange(characters)
    if characters <= 4:
        # Of a pair of mirrored orders exactly one has its first element below its last.
        halves = torch.tensor([order for order in permutations(range(characters)) if order[0] < order[-1]])
        chosen = 1 + torch.randperm(len(halves) - 1)[: pairs - 1]
        orders = torch.cat([halves[:1], halves[chosen]])
    else:
        drawn = [torch.randperm(characters) for _ in range(pairs - 1)]
        orders = torch.stack([forward, *drawn])
    mirrored = torch.stack([orders, orders.flip(-1)], dim=1).flatten(0, 1)  # (2·pairs, characters)
    begin = torch.zeros(len(mirrored), 1, dtype=torch.long)
    end = torch.full((len(mirrored), 1), characters + 1)
    full = torch.cat([begin, mirrored + 1, end], dim=1)
    full[1, 1:] = characters + 1 - torch.arange(characters + 1)
    return full


def number_of_orders(characters: int, count: int) -> int:
    """How many orders ``sample_orders`` gives."""
    if characters <= 1 or count == 1:
        return 1
    return 2 * min(max(count // 2, 1), math.factorial(characters) // 2)


def order_masks(order: Tensor) -> tuple[Tensor, Tensor]:
    """The masks that make a decoder predict in this order; order: (P,) long over P = characters + 2 positions.

    Returns (content, query), each (P - 1, P - 1) bool, True = may be seen. Rows of the query mask are the positions that
    are predicted (1..P-1), columns the context tokens (0..P-2); a position never sees itself.
    """
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    seen = rank.unsqueeze(0) <= rank.unsqueeze(1)  # (P, P): row sees the columns that come no later
    strictly = rank.unsqueeze(0) < rank.unsqueeze(1)
    return seen[:-1, :-1], strictly[1:, :-1]
