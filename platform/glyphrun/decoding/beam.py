"""Beam search: the best ``width`` open hypotheses of every item grow together, and those that end are collected.

As in transformers' ``generate``, a hypothesis ends only while it is among the ``width`` best continuations of its item,
so that a beam of one reads what greedy search reads. Two things differ from there. After a text of the greatest length
nothing but the end may follow, where ``generate`` lists what has not ended as it is. And a beam goes on until no open
hypothesis can reach the n-best, also where lengths are penalised: that is ``early_stopping="never"`` there, while its
default, False, takes every open hypothesis for one that ends at once, and under a positive penalty may stop too soon.

The bookkeeping is done for all items at once, on the CPU, with one look at the device in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glyphrun.decoding.scorer import ASKED, Memoised, Scorer, State, ranked
from glyphrun.models.recognizer import Generative, Memory, TokenHypothesis

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@torch.no_grad()
def beam(
    recognizer: Generative,
    memory: Memory,
    width: int,
    n_best: int,
    *,
    length_penalty: float = 0.0,
    early_stop: bool = False,
    scorer: Scorer | None = None,
    places: Sequence[int] | None = None,
) -> list[list[TokenHypothesis]]:
    """The n_best ended hypotheses of each item, best first, at most ``width``, out of a beam of that width.

    Open hypotheses are compared by their log-probability plus what the scorer adds, ended ones by that sum over
    length**length_penalty, the end counted. An item is done when no open hypothesis can still reach its n_best, or with
    early_stop once ``width`` hypotheses have ended. The scorer is asked about the max(ASKED, width) most probable
    continuations of a hypothesis and about its end; a beam as wide as the space of all texts finds the exact n_best.
    places: of the items to be searched, all by default.
    """
    device, longest = memory.tokens.device, recognizer.max_length + 1
    items = len(memory.tokens if places is None else places)
    fusion = None if scorer is None else Memoised(scorer)
    looked_at = considered(width, scorer)
    most = 0.0 if fusion is None else fusion.most  # recognizers add log-probabilities
    opened, ended = _Open.first(items, width, fusion), _Ended(items, min(n_best, width), length_penalty)
    state = recognizer.start(memory, width)
    if places is not None:
        state = state.keep(torch.tensor(places, device=device))
    tokens = torch.full((items * width,), recognizer.begin, device=device)
    for length in range(1, longest + 1):  # of what ends in this step, its end counted
        log_probs, state = recognizer.step(state, tokens)
        best = _continuations(log_probs, recognizer.end, looked_at if length < longest else 0, opened, fusion)
        ended.add(best, opened, recognizer.end, length)
        if length == longest:
            break
        parents, grown = _grown(best, opened, recognizer.end, fusion)
        later = np.arange(length + 1, longest + 1)
        reachable = ((grown.totals[:, :1] + most * (later - length)) / later**length_penalty).max(1)  # (A,)
        going_on = reachable > ended.scores[grown.items, -1]
        if early_stop:
            going_on &= ended.counts[grown.items] < width
        kept = np.flatnonzero(going_on)
        if not len(kept):
            break
        if len(kept) < len(going_on):
            state, grown, parents = state.keep(torch.from_numpy(kept).to(device)), grown.keep(kept), parents[kept]
        opened = grown
        rows = np.arange(len(kept))[:, None] * width + parents
        state = state.reorder(torch.from_numpy(rows.ravel()).to(device))
        tokens = torch.from_numpy(opened.tokens[:, :, -1].ravel()).to(device)
    return ended.ranked()


def considered(width: int, scorer: Scorer | None) -> int:
    """How many of the likeliest continuations of a hypothesis, its end apart, a beam looks at."""
    return width if scorer is None else max(width, ASKED)


@dataclass(frozen=True)
class _Open:
    """Hypotheses that may still grow, best first: ``width`` for each of the A items that are not done.

    items: (A,), their places in the batch. totals: (A, width), -inf where an item has fewer hypotheses. tokens,
    log_probs: (A, width, P). states: (A, width), what a scorer remembers of each.
    """

    items: Ints
    totals: Floats
    tokens: Ints
    log_probs: Floats
    states: list[list[State]]

    @classmethod
    def first(cls, items: int, width: int, fusion: Memoised | None) -> _Open:
        """Nothing read yet, which is one hypothesis and not ``width`` equal ones."""
        totals = np.full((items, width), -np.inf)
        totals[:, 0] = 0.0
        nothing = (items, width, 0)
        start = None if fusion is None else fusion.start()
        states = [[start] * width for _ in range(items)]
        return cls(np.arange(items), totals, np.zeros(nothing, np.int64), np.zeros(nothing), states)

    def keep(self, rows: Ints) -> _Open:
        """Items that are done leave; rows: (K,)."""
        return _Open(
            self.items[rows],
            self.totals[rows],
            self.tokens[rows],
            self.log_probs[rows],
            [self.states[row] for row in rows],
        )


@dataclass(frozen=True)
class _Best:
    """The 2·width best continuations of each item, best first, all (A, 2·width): so many that ``width`` do not end.

    parents: which of the open hypotheses grows; log_probs: of the tokens, by the recognizer alone.
    """

    totals: Floats
    parents: Ints
    tokens: Ints
    log_probs: Floats


def _continuations(log_probs: Tensor, end: int, considered: int, opened: _Open, fusion: Memoised | None) -> _Best:
    """log_probs: (A·width, V), of which each hypothesis' end and ``considered`` most probable other tokens may be best.

    Without a scorer ``width`` of them leave out nothing: a less probable one has ``width`` better ones beside it.
    """
    items, width = opened.totals.shape
    likely = log_probs.topk(min(considered + 1, log_probs.shape[1]) if considered else 0)
    scores = torch.cat([likely.values, log_probs[:, end : end + 1]], dim=1).view(items, width, -1)
    chosen = torch.cat([likely.indices, likely.indices.new_full((len(log_probs), 1), end)], dim=1).view_as(scores)
    own, tokens = scores.cpu().double().numpy(), chosen.cpu().numpy()
    own[:, :, :-1][tokens[:, :, :-1] == end] = -np.inf  # it stands last already
    totals = opened.totals[:, :, None] + own
    if fusion is not None:
        totals += _added(fusion, opened.states, tokens, totals)
    flat = totals.reshape(items, -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, : 2 * width]
    return _Best(
        np.take_along_axis(flat, order, axis=1),
        order // totals.shape[2],
        np.take_along_axis(tokens.reshape(items, -1), order, axis=1),
        np.take_along_axis(own.reshape(items, -1), order, axis=1),
    )


def _added(fusion: Memoised, states: list[list[State]], tokens: Ints, totals: Floats) -> Floats:
    """What the scorer adds for each continuation that is possible, the last one being the end: (A, width, C)."""
    added = np.zeros(totals.shape)
    possible = totals > -np.inf
    for item, slot in np.argwhere(possible.any(2)).tolist():
        state = states[item][slot]
        places = np.flatnonzero(possible[item, slot, :-1])
        added[item, slot, places] = [fusion.extend(state, token)[0] for token in tokens[item, slot, places].tolist()]
        added[item, slot, -1] = fusion.finish(state)
    return added


def _grown(best: _Best, opened: _Open, end: int, fusion: Memoised | None) -> tuple[Ints, _Open]:
    """The ``width`` best of each item that do not end, and from which hypotheses they grew: (A, width)."""
    ends = best.tokens == end
    places = np.argsort(ends, axis=1, kind="stable")[:, : opened.totals.shape[1]]
    totals = np.take_along_axis(np.where(ends, -np.inf, best.totals), places, axis=1)
    parents = np.take_along_axis(best.parents, places, axis=1)
    tokens = np.take_along_axis(best.tokens, places, axis=1)
    own = np.take_along_axis(best.log_probs, places, axis=1)
    states = opened.states
    if fusion is not None:
        states = [
            [
                fusion.extend(before[parent], token)[1] if total > -np.inf else before[parent]
                for parent, token, total in zip(*row, strict=True)
            ]
            for before, *row in zip(states, parents.tolist(), tokens.tolist(), totals.tolist(), strict=True)
        ]
    rows = np.arange(len(parents))[:, None]
    return parents, _Open(
        opened.items,
        totals,
        np.concatenate([opened.tokens[rows, parents], tokens[:, :, None]], axis=2),
        np.concatenate([opened.log_probs[rows, parents], own[:, :, None]], axis=2),
        states,
    )


class _Ended:
    """What has ended so far. scores: (B, n), of each item's n-best, -inf where fewer have ended; counts: (B,), of all."""

    def __init__(self, items: int, n_best: int, length_penalty: float) -> None:
        self.scores = np.full((items, n_best), -np.inf)
        self.counts = np.zeros(items, np.int64)
        self._penalty = length_penalty
        self._found: list[list[TokenHypothesis]] = [[] for _ in range(items)]

    def add(self, best: _Best, opened: _Open, end: int, length: int) -> None:
        """Collect what ends among the ``width`` best continuations; length: its tokens and the end."""
        width = opened.totals.shape[1]
        totals = best.totals[:, :width]
        ends = (best.tokens[:, :width] == end) & (totals > -np.inf)
        scores = np.where(ends, totals / length**self._penalty, -np.inf)
        merged = np.concatenate([self.scores[opened.items], scores], axis=1)
        self.scores[opened.items] = -np.sort(-merged, axis=1)[:, : self.scores.shape[1]]
        self.counts[opened.items] += ends.sum(1)
        among_best = ends & (scores >= self.scores[opened.items, -1:])
        for row, place in np.argwhere(among_best).tolist():
            parent = best.parents[row, place]
            own = (*opened.log_probs[row, parent].tolist(), float(best.log_probs[row, place]))
            tokens = tuple(opened.tokens[row, parent].tolist())
            self._found[opened.items[row]].append(TokenHypothesis(tokens, sum(own), own, float(scores[row, place])))

    def ranked(self) -> list[list[TokenHypothesis]]:
        """The n-best of each item."""
        return [ranked(found)[: self.scores.shape[1]] for found in self._found]
