"""Decoding of connectionist temporal classification: best path, and prefix beam search with n-best.

An alignment gives every place along a line a character or the blank (token 0); its reading is what remains when repeats
are merged and blanks dropped. The probability of a reading is that of all its alignments together (Graves et al., ICML
2006), and both searches report it exactly. It factors over the characters as in a recognizer that generates them one by
one: entry k of token_log_probs is the logarithm of P(text begins with the first k characters | it begins with the first
k - 1), the last entry that of P(text ends there | it begins so), and together they sum to log_prob.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glyphrun.decoding.scorer import ASKED, Memoised, Scorer, State, ranked, scored
from glyphrun.models.recognizer import TokenHypothesis

BLANK = 0
NOWHERE = -1  # the node of an empty slot in a beam, and the parent of the empty prefix


def best_path(log_probs: Tensor, lengths: Tensor) -> list[TokenHypothesis]:
    """The reading of each item's most probable alignment; log_probs: (B, S, V), lengths: (B,) long.

    That reading need not be the most probable one, but its probability is its own.
    """
    readings = [[reading] for reading in merged(log_probs.argmax(-1), lengths)]
    return [found for (found,) in score(log_probs, lengths, readings)]


def merged(alignments: Tensor, lengths: Tensor) -> list[tuple[int, ...]]:
    """The readings of alignments (N, S) long, of which the first (N,) ``lengths`` places count."""
    places = torch.arange(alignments.shape[1], device=alignments.device)
    begins = (alignments != BLANK) & (places < lengths.unsqueeze(1))
    begins[:, 1:] &= alignments[:, 1:] != alignments[:, :-1]
    return [
        tuple(np.asarray(row)[kept].tolist())
        for row, kept in zip(alignments.cpu().numpy(), begins.cpu().numpy(), strict=True)
    ]


def prefix_beam(
    log_probs: Tensor,
    lengths: Tensor,
    width: int,
    n_best: int,
    length_penalty: float = 0.0,
    scorer: Scorer | None = None,
) -> list[list[TokenHypothesis]]:
    """The n_best readings of each item, best first, out of a beam of ``width`` prefixes (Hannun et al., arXiv 1408.2873).

    log_probs: (B, S, V), lengths: (B,) long. At each place a prefix is extended by the width + 1 most probable characters
    only, which leaves out nothing: a less probable one would have at least ``width`` better prefixes beside it. A beam
    that holds every prefix finds the most probable readings of all; a narrower one may miss some. With a scorer, which
    is asked about max(ASKED, width + 1) characters, prefixes are compared by what it adds as well. Whole readings are
    ranked by log-probability and scorer over length**length_penalty, an end counted.
    """
    fusion = None if scorer is None else Memoised(scorer)
    beams = _PrefixBeams(log_probs, lengths, width, fusion)
    readings = beams.search(width if length_penalty or fusion else min(n_best, width))
    return [
        ranked(scored(hypothesis, length_penalty, fusion) for hypothesis in found)[:n_best]
        for found in score(log_probs, lengths, readings)
    ]


@torch.inference_mode()
def score(
    log_probs: Tensor, lengths: Tensor, readings: Sequence[Sequence[tuple[int, ...]]]
) -> list[list[TokenHypothesis]]:
    """The exact probabilities of some readings of each item, in the order given; log_probs: (B, S, V), lengths: (B,) long.

    The forward variables of CTC in float64: what has been read after each place, ending in a blank or in a character.
    """
    flat = [reading for item in readings for reading in item]
    if not flat:
        return [[] for _ in readings]
    items = torch.tensor([number for number, item in enumerate(readings) for _ in item])
    longest = max(map(len, flat))
    labels = torch.zeros(len(flat), longest, dtype=torch.long)  # (H, L)
    for row, reading in zip(labels, flat, strict=True):
        row[: len(reading)] = torch.tensor(reading, dtype=torch.long)
    emitted = log_probs.cpu().transpose(0, 1).contiguous()  # (S, B, V)
    wanted = items.unsqueeze(1) * emitted.shape[2] + labels  # where a reading's characters stand in (B · V)
    blanks = emitted[:, :, BLANK].double()[:, items].unsqueeze(2)  # (S, H, 1)
    last = lengths.cpu()[items]
    repeats = torch.zeros_like(labels, dtype=torch.bool)
    repeats[:, 1:] = labels[:, 1:] == labels[:, :-1]
    in_blank = torch.full((len(flat), longest + 1), -inf, dtype=torch.float64)
    in_blank[:, 0] = 0.0
    in_character, so_far = torch.full_like(in_blank, -inf), torch.empty_like(in_blank)
    begun = torch.full((len(flat), longest), -inf, dtype=torch.float64)
    # A line alone is mostly the cost of calls, so the views are taken once and everything is changed in place.
    before_blank, before, reached = in_blank[:, :-1], so_far[:, :-1], in_character[:, 1:]
    entering = torch.empty_like(begun)
    shortest = int(last.min())
    for place, (here, blank) in enumerate(zip(emitted[: int(last.max())], blanks, strict=False)):
        character = here.take(wanted).double()  # (H, L)
        if place >= shortest:
            # Past its end a line says «blank» with certainty, which changes no reading.
            over = (last <= place).unsqueeze(1)
            blank, character = blank.masked_fill(over, 0.0), character.masked_fill(over, -inf)
        torch.logaddexp(in_blank, in_character, out=so_far)
        torch.where(repeats, before_blank, before, out=entering)
        entering.add_(character)
        torch.logaddexp(reached.add_(character), entering, out=reached)
        torch.add(so_far, blank, out=in_blank)
        torch.logaddexp(begun, entering, out=begun)
    ended = torch.logaddexp(in_blank, in_character)  # (H, L + 1)
    begun = torch.cat([torch.zeros(len(flat), 1, dtype=torch.float64), begun], dim=1)
    rows = iter(zip(flat, ended.tolist(), begun.tolist(), strict=True))
    return [[_hypothesis(*next(rows)) for _ in item] for item in readings]


def _hypothesis(reading: tuple[int, ...], ended: list[float], begun: list[float]) -> TokenHypothesis:
    """ended, begun: log-probabilities that the text is, or begins with, the reading's first 0, 1, … characters."""
    count = len(reading)
    steps = [_given(begun[place + 1], begun[place]) for place in range(count)]
    return TokenHypothesis(reading, ended[count], (*steps, _given(ended[count], begun[count])))


def _given(both: float, before: float) -> float:
    return both - before if before > -inf else -inf  # what follows something impossible stays impossible


class _PrefixBeams:
    """The beams of all items at once: a slot is a prefix, known by its node in a tree of prefixes.

    Arrays are (A, width) over the items that have places left, longest first. in_blank and in_character are the
    log-probabilities of the prefix's alignments so far that end in a blank and in its last character.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, width: int, fusion: Memoised | None) -> None:
        self.items, _, self.vocabulary = log_probs.shape
        self.width = width
        self.fusion = fusion
        counts = lengths.cpu().numpy()
        self.order = np.argsort(-counts, kind="stable")
        self.active = [int((counts > place).sum()) for place in range(int(counts.max(initial=0)))]
        ordered = log_probs[torch.from_numpy(self.order).to(log_probs.device)].transpose(0, 1)  # (S, B, V)
        considered = width + 1 if fusion is None else max(width + 1, ASKED)
        likely = ordered[:, :, 1:].topk(min(considered, self.vocabulary - 1), dim=-1)
        self.log_probs = ordered.double().cpu().numpy()
        self.likely_scores = likely.values.double().cpu().numpy()  # (S, B, C)
        self.likely = likely.indices.cpu().numpy() + 1
        shape = (self.items, width)
        self.in_blank, self.in_character = np.full(shape, -inf), np.full(shape, -inf)
        self.node, self.parent = np.full(shape, NOWHERE), np.full(shape, NOWHERE - 1)
        self.last = np.full(shape, BLANK)
        self.in_blank[:, 0], self.node[:, 0] = 0.0, np.arange(self.items)
        self.parents = [NOWHERE] * self.items  # of every node: the first ones are the empty prefixes
        self.characters = [BLANK] * self.items
        self.children: dict[int, int] = {}
        self.states: list[State] = [] if fusion is None else [fusion.start()] * self.items  # of every node, as above
        self.added = [0.0] * self.items  # by the scorer on the way to the node

    def search(self, n_best: int) -> list[list[tuple[int, ...]]]:
        """The n_best prefixes of each item after its last place."""
        for place, active in enumerate(self.active):
            self._step(place, active)
        totals = np.logaddexp(self.in_blank, self.in_character)
        found: list[list[tuple[int, ...]]] = [[] for _ in range(self.items)]
        for row, item in enumerate(self.order):
            best = np.argsort(-totals[row], kind="stable")[:n_best]
            found[item] = [self._reading(int(self.node[row, slot])) for slot in best if totals[row, slot] > -inf]
        return found

    def _step(self, place: int, active: int) -> None:
        """Every prefix stays as it is or grows by one character; the best ``width`` of each item go on."""
        here, likely = self.log_probs[place, :active], self.likely[place, :active]  # (A, V), (A, C)
        in_blank, in_character = self.in_blank[:active], self.in_character[:active]
        node, parent, last = self.node[:active], self.parent[:active], self.last[:active]
        so_far = np.logaddexp(in_blank, in_character)
        repeated = np.take_along_axis(here, last, axis=1)  # (A, K)
        stays_blank = so_far + here[:, :1]
        stays_character = in_character + repeated
        # A character that repeats the last one makes a new prefix only after a blank.
        repeats = likely[:, None, :] == last[:, :, None]
        grown = self.likely_scores[place, :active, None, :] + np.where(
            repeats, in_blank[:, :, None], so_far[:, :, None]
        )
        # Where a prefix and its parent are both in the beam, what the parent grows into is that prefix.
        items, children, parents = np.nonzero(parent[:, :, None] == node[:, None, :])
        if len(items):
            characters = last[items, children]
            before = np.where(characters == last[items, parents], in_blank[items, parents], so_far[items, parents])
            stays_character[items, children] = np.logaddexp(
                stays_character[items, children], before + repeated[items, children]
            )
            links, columns = np.nonzero(likely[items] == characters[:, None])
            grown[items[links], parents[links], columns] = -inf
        scores = np.concatenate([np.logaddexp(stays_blank, stays_character), grown.reshape(active, -1)], axis=1)
        known = scores if self.fusion is None else scores + self._added(self.fusion, node, likely)
        chosen = np.argpartition(-known, self.width - 1, axis=1)[:, : self.width]
        stays = chosen < self.width
        source = np.where(stays, chosen, (chosen - self.width) // likely.shape[1])
        score = np.take_along_axis(scores, chosen, axis=1)
        self.in_blank[:active] = np.where(stays, np.take_along_axis(stays_blank, source, axis=1), -inf)
        self.in_character[:active] = np.where(stays, np.take_along_axis(stays_character, source, axis=1), score)
        grew = ~stays & (score > -inf)
        sources = np.take_along_axis(node, source, axis=1)
        self.node[:active] = np.where(stays, sources, NOWHERE)
        self.parent[:active] = np.where(stays, np.take_along_axis(parent, source, axis=1), NOWHERE - 1)
        self.last[:active] = np.where(stays, np.take_along_axis(last, source, axis=1), BLANK)
        items, slots = np.nonzero(grew)
        before = sources[items, slots]
        characters = likely[items, (chosen[items, slots] - self.width) % likely.shape[1]]
        self.node[items, slots] = [
            self._child(*pair) for pair in zip(before.tolist(), characters.tolist(), strict=True)
        ]
        self.parent[items, slots], self.last[items, slots] = before, characters

    def _added(self, fusion: Memoised, node: NDArray[np.int64], likely: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the scorer adds to each prefix as it is, then to each grown by each likely character: (A, width·(1 + C))."""
        items, count = likely.shape
        stays, grown = np.zeros((items, self.width)), np.zeros((items, self.width, count))
        for item, slot in np.argwhere(node != NOWHERE).tolist():
            before, state = self.added[node[item, slot]], self.states[node[item, slot]]
            stays[item, slot] = before
            grown[item, slot] = [before + fusion.extend(state, character)[0] for character in likely[item].tolist()]
        return np.concatenate([stays, grown.reshape(items, -1)], axis=1)

    def _child(self, node: int, character: int) -> int:
        """The node of a prefix one character longer; a prefix that comes back is the same node as before."""
        key = node * self.vocabulary + character
        if key not in self.children:
            if self.fusion is not None:
                added, state = self.fusion.extend(self.states[node], character)
                self.states.append(state)
                self.added.append(self.added[node] + added)
            self.children[key] = len(self.parents)
            self.parents.append(node)
            self.characters.append(character)
        return self.children[key]

    def _reading(self, node: int) -> tuple[int, ...]:
        characters = []
        while self.parents[node] != NOWHERE:
            characters.append(self.characters[node])
            node = self.parents[node]
        return tuple(reversed(characters))
