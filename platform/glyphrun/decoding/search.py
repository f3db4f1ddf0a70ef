"""Search over a recognizer's steps: greedy, beam and non-autoregressive, written once for every recognizer."""

from __future__ import annotations

import torch
from torch import Tensor

from glyphrun.decoding.ctc import best_path, prefix_beam
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import Emitting, Generative, Memory, Ranking, Recognizer, Refinable, TokenHypothesis


def search(recognizer: Recognizer, memory: Memory, settings: DecodeSettings) -> list[list[TokenHypothesis]]:
    """The best readings of every item of the memory, best first.

    Raises TypeError if the recognizer cannot search as the settings ask.
    """
    if isinstance(recognizer, Ranking):
        return recognizer.rank(memory, settings.n_best)
    if isinstance(recognizer, Emitting):
        return _along_the_line(recognizer, memory, settings)
    if settings.search == "beam":
        return beam(_generative(recognizer), memory, settings.width, settings.n_best)
    if settings.search == "non-autoregressive":
        log_probs = _refinable(recognizer).parallel(memory)
    else:
        log_probs = greedy(_generative(recognizer), memory)
    for _ in range(settings.refine_iters):
        log_probs = _refinable(recognizer).refine(memory, log_probs.argmax(-1))
    return [[hypothesis] for hypothesis in _readings(log_probs, _generative(recognizer).end)]


def greedy(recognizer: Generative, memory: Memory) -> Tensor:
    """The most probable token at every step: log-probabilities (B, max_length + 1, V).

    Items that have ended leave the batch; their remaining rows say «end» with certainty.
    """
    items, device = len(memory.tokens), memory.tokens.device
    state = recognizer.start(memory, 1)
    tokens = torch.full((items,), recognizer.begin, device=device)
    active = torch.arange(items, device=device)
    steps: list[tuple[Tensor, Tensor]] = []
    for _ in range(recognizer.max_length + 1):
        log_probs, state = recognizer.step(state, tokens)
        steps.append((active, log_probs))
        tokens = log_probs.argmax(-1)
        going_on = (tokens != recognizer.end).nonzero().squeeze(1)
        if not len(going_on):
            break
        if len(going_on) < len(tokens):
            state, tokens, active = state.keep(going_on), tokens[going_on], active[going_on]
    filled = steps[0][1].new_full((items, recognizer.max_length + 1, steps[0][1].shape[-1]), float("-inf"))
    filled[:, :, recognizer.end] = 0.0
    for position, (rows, log_probs) in enumerate(steps):
        filled[rows, position] = log_probs
    return filled


def beam(recognizer: Generative, memory: Memory, width: int, n_best: int) -> list[list[TokenHypothesis]]:
    """The n_best ended hypotheses of a beam of the given width, by the sum of their log-probabilities.

    An item is done when no open hypothesis can still reach its n_best: probabilities only fall as readings grow.
    """
    items, device = len(memory.tokens), memory.tokens.device
    wanted = min(n_best, width)
    state = recognizer.start(memory, width)
    tokens = torch.full((items * width,), recognizer.begin, device=device)
    # Only the first of the identical initial beams may be extended.
    scores = torch.full((items, width), float("-inf"), device=device)
    scores[:, 0] = 0.0
    histories: list[list[tuple[tuple[int, ...], tuple[float, ...]]]] = [[((), ())] * width for _ in range(items)]
    active = list(range(items))
    ended: list[list[TokenHypothesis]] = [[] for _ in range(items)]
    for position in range(recognizer.max_length + 1):
        log_probs, state = recognizer.step(state, tokens)
        vocabulary = log_probs.shape[-1]
        extended = scores.unsqueeze(-1) + log_probs.view(len(active), width, vocabulary)  # (A, width, V)
        for row, item in enumerate(active):
            for parent in range(width):
                score = float(extended[row, parent, recognizer.end])
                if score > float("-inf"):
                    tokens_so_far, token_scores = histories[row][parent]
                    step_score = float(log_probs[row * width + parent, recognizer.end])
                    ended[item].append(TokenHypothesis(tokens_so_far, score, (*token_scores, step_score)))
            ended[item] = sorted(ended[item], key=lambda found: -found.log_prob)[:wanted]
        if position == recognizer.max_length:
            break
        extended[:, :, recognizer.end] = float("-inf")
        scores, places = extended.flatten(1).topk(width, dim=1)  # (A, width)
        parents, chosen = places // vocabulary, places % vocabulary
        rows = (torch.arange(len(active), device=device).unsqueeze(1) * width + parents).flatten()
        step_scores = log_probs[rows, chosen.flatten()].view(len(active), width).tolist()
        histories = [
            [
                ((*history[parent][0], token), (*history[parent][1], score))
                for parent, token, score in zip(*step, strict=True)
            ]
            for history, *step in zip(histories, parents.tolist(), chosen.tolist(), step_scores, strict=True)
        ]
        open_best = scores[:, 0].tolist()
        keep = [
            row
            for row, item in enumerate(active)
            if len(ended[item]) < wanted or open_best[row] > ended[item][-1].log_prob
        ]
        if not keep:
            break
        state, tokens = state.reorder(rows), chosen.flatten()
        if len(keep) < len(active):
            kept = torch.tensor(keep, device=device)
            state, scores, tokens = state.keep(kept), scores[kept], tokens.view(-1, width)[kept].flatten()
            histories, active = [histories[row] for row in keep], [active[row] for row in keep]
    return ended


def _along_the_line(recognizer: Emitting, memory: Memory, settings: DecodeSettings) -> list[list[TokenHypothesis]]:
    log_probs, lengths = recognizer.emissions(memory)
    if settings.search == "beam":
        return prefix_beam(log_probs, lengths, settings.width, settings.n_best)
    if settings.search == "non-autoregressive" or settings.refine_iters:
        raise TypeError(f"{type(recognizer).__name__} reads all places at once already and has no refinement")
    return [[found] for found in best_path(log_probs, lengths)]


def _readings(log_probs: Tensor, end: int) -> list[TokenHypothesis]:
    """The most probable token at each place up to the first end; log_probs: (B, L + 1, V)."""
    best = log_probs.max(-1)
    readings = []
    for tokens, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        length = tokens.index(end) if end in tokens else len(tokens)
        kept = tuple(scores[: length + 1])
        readings.append(TokenHypothesis(tuple(tokens[:length]), sum(kept), kept))
    return readings


def _generative(recognizer: Recognizer) -> Generative:
    if not isinstance(recognizer, Generative):
        raise TypeError(f"{type(recognizer).__name__} does not generate tokens step by step")
    return recognizer


def _refinable(recognizer: Recognizer) -> Refinable:
    if not isinstance(recognizer, Refinable):
        raise TypeError(f"{type(recognizer).__name__} has no non-autoregressive decoding and no refinement")
    return recognizer
