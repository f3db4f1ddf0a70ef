"""Sampling: readings drawn at random, as probable as the recognizer thinks they are.

Temperature, top-k and top-p (Holtzman et al., arXiv 1904.09751) shape what is drawn from, in this order; the
log-probabilities of a reading stay the recognizer's own. Every item meets the same random numbers: what it reads depends
on the seed and on itself, never on the other items of a batch or its place among them. In return the samples of two
items are not independent of each other, those of one item are; frames that look alike err alike when they are sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from glyphrun.decoding.ctc import merged, score
from glyphrun.decoding.greedy import cut_at_end
from glyphrun.decoding.scorer import ranked
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import Generative, Memory, TokenHypothesis


@torch.no_grad()
def sample(recognizer: Generative, memory: Memory, settings: DecodeSettings) -> list[list[TokenHypothesis]]:
    """The n-best of the distinct readings among the samples of each item, by their own log-probability.

    ``share`` is how large a part of the samples each of them is. All samples of an item are drawn side by side; it leaves
    the batch once all have ended. As in greedy search, one that never ends has a token more than the longest label.
    """
    items, samples, device = len(memory.tokens), settings.samples, memory.tokens.device
    random = np.random.default_rng(settings.seed)
    chosen = torch.full((items, samples, recognizer.max_length + 1), recognizer.end, device=device)
    scores = torch.zeros(chosen.shape, device=device)
    state = recognizer.start(memory, samples)
    tokens = torch.full((items, samples), recognizer.begin, device=device)
    active = torch.arange(items, device=device)
    ended = torch.zeros(items, samples, dtype=torch.bool, device=device)
    for position in range(recognizer.max_length + 1):
        log_probs, state = recognizer.step(state, tokens.flatten())
        log_probs = log_probs.view(len(active), samples, -1)
        noise = torch.from_numpy(random.random(samples)).to(device)
        tokens = draw(distribution(log_probs, settings), noise.view(1, samples, 1).expand(len(active), -1, -1))
        own = log_probs.gather(2, tokens).squeeze(2).masked_fill(ended, 0.0)
        tokens = tokens.squeeze(2).masked_fill(ended, recognizer.end)
        chosen[active, :, position], scores[active, :, position] = tokens, own
        ended = ended | (tokens == recognizer.end)
        going_on = (~ended.all(1)).nonzero().squeeze(1)
        if not len(going_on):
            break
        if len(going_on) < len(active):
            state, tokens, active, ended = state.keep(going_on), tokens[going_on], active[going_on], ended[going_on]
    drawn = cut_at_end(chosen.flatten(0, 1), scores.flatten(0, 1), recognizer.end)
    return [_distinct(drawn[first : first + samples], settings) for first in range(0, len(drawn), samples)]


@torch.no_grad()
def sample_alignments(log_probs: Tensor, lengths: Tensor, settings: DecodeSettings) -> list[list[TokenHypothesis]]:
    """The same for the places along a line: samples of alignments, whose readings have their exact probabilities.

    log_probs: (B, S, V), lengths: (B,) long, as in connectionist temporal classification.
    """
    items, places, _ = log_probs.shape
    noise = torch.from_numpy(np.random.default_rng(settings.seed).random((places, settings.samples)))
    shaped = distribution(log_probs, settings)
    drawn = draw(shaped, noise.to(log_probs.device).expand(items, -1, -1)).transpose(1, 2)  # (B, samples, S)
    readings = merged(drawn.flatten(0, 1), lengths.repeat_interleave(settings.samples))
    counts = [
        Counter(readings[first : first + settings.samples]) for first in range(0, len(readings), settings.samples)
    ]
    found = score(log_probs, lengths, [list(count) for count in counts])
    return [_shared(hypotheses, count, settings) for hypotheses, count in zip(found, counts, strict=True)]


def sample_ranking(
    rankings: Sequence[Sequence[TokenHypothesis]], settings: DecodeSettings
) -> list[list[TokenHypothesis]]:
    """The same for a recognizer that ranks all its readings: temperature, top-k and top-p act on whole readings."""
    noise = torch.from_numpy(np.random.default_rng(settings.seed).random(settings.samples))
    found = []
    for ranking in rankings:
        shaped = distribution(torch.tensor([hypothesis.log_prob for hypothesis in ranking]), settings)
        found.append(_distinct([ranking[place] for place in draw(shaped, noise).tolist()], settings))
    return found


def distribution(log_probs: Tensor, settings: DecodeSettings) -> Tensor:
    """What is drawn from: log_probs (…, V) → probabilities (…, V) in float64, which sum to 1.

    Of equally probable tokens at the edge of top_k all stay. top_p keeps the most probable tokens until they have that
    probability together, of what top_k left.
    """
    scores = log_probs.double()
    # The best is 0, so that it stays finite at any temperature.
    scores = (scores - scores.amax(-1, keepdim=True)) / settings.temperature
    if settings.top_k is not None and settings.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(settings.top_k).values[..., -1:], float("-inf"))
    probabilities = scores.softmax(-1)
    if settings.top_p < 1:
        falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
        falling = falling.masked_fill(falling.cumsum(-1) - falling >= settings.top_p, 0.0)
        probabilities = torch.zeros_like(falling).scatter(-1, order, falling)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Tokens (…, N) long by inversion; probabilities: (…, V) that sum to 1, noise: (…, N) in [0, 1), both float64."""
    rising = probabilities.cumsum(-1)
    # Of the sum as it was rounded: beyond it there would be no token.
    return torch.searchsorted(rising, (noise * rising[..., -1:]).contiguous(), right=True).clamp(
        max=probabilities.shape[-1] - 1
    )


def _distinct(drawn: Sequence[TokenHypothesis], settings: DecodeSettings) -> list[TokenHypothesis]:
    counts = Counter(hypothesis.tokens for hypothesis in drawn)
    first = {hypothesis.tokens: hypothesis for hypothesis in reversed(drawn)}
    return _shared([first[tokens] for tokens in counts], counts, settings)


def _shared(
    found: Sequence[TokenHypothesis], counts: Counter[tuple[int, ...]], settings: DecodeSettings
) -> list[TokenHypothesis]:
    shares = [replace(hypothesis, share=counts[hypothesis.tokens] / settings.samples) for hypothesis in found]
    return ranked(shares)[: settings.n_best]
