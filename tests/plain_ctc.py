"""Connectionist temporal classification by enumeration and by the book, for tests of what is faster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import exp, inf

import numpy as np
import torch
from torch import Tensor

Text = tuple[int, ...]


def emissions(seed: int, items: int, places: int, vocabulary: int, spread: float = 1.0) -> Tensor:
    random = torch.randn(items, places, vocabulary, generator=torch.Generator().manual_seed(seed))
    return (random * spread).log_softmax(-1)


def collapsed(alignment: Text) -> Text:
    return tuple(token for token, before in zip(alignment, (0, *alignment), strict=False) if token and token != before)


def every_reading(log_probs: Tensor) -> dict[Text, float]:
    """Probabilities of all readings of one item, by summing over all alignments."""
    found: dict[Text, float] = {}
    places, vocabulary = log_probs.shape
    table = log_probs.double().tolist()
    for alignment in itertools.product(range(vocabulary), repeat=places):
        reading = collapsed(alignment)
        found[reading] = found.get(reading, 0.0) + exp(sum(row[t] for row, t in zip(table, alignment, strict=True)))
    return found


def plain_prefix_beam(log_probs: Tensor, width: int, more: Callable[[Text], float] = lambda _: 0.0) -> set[Text]:
    """The search as it is written down: a dictionary of prefixes, every character tried on each, ``more`` added to its score."""
    beam = {(): (0.0, -inf)}
    for row in log_probs.double().tolist():
        grown: dict[Text, tuple[float, float]] = {}

        def add(prefix: Text, blank: float, character: float, into=grown) -> None:
            before = into.get(prefix, (-inf, -inf))
            into[prefix] = (float(np.logaddexp(before[0], blank)), float(np.logaddexp(before[1], character)))

        for prefix, (blank, character) in beam.items():
            both = float(np.logaddexp(blank, character))
            add(prefix, both + row[0], -inf)
            for token in range(1, len(row)):
                repeated = bool(prefix) and token == prefix[-1]
                if repeated:
                    add(prefix, -inf, character + row[token])
                add((*prefix, token), -inf, (blank if repeated else both) + row[token])

        def value(prefix: Text, of=grown) -> float:
            return float(np.logaddexp(*of[prefix])) + more(prefix)

        beam = {prefix: grown[prefix] for prefix in sorted(grown, key=value, reverse=True)[:width]}
    return set(beam)
