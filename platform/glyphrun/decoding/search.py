"""Search: what an encoded item reads, by whatever way its recognizer has and the settings ask for."""

from __future__ import annotations

import sys
from functools import partial

from glyphrun.decoding.beam import beam
from glyphrun.decoding.cloze import cloze_rescore
from glyphrun.decoding.ctc import best_path, prefix_beam
from glyphrun.decoding.greedy import cut_at_end, greedy
from glyphrun.decoding.replay import Record, recorded_beam
from glyphrun.decoding.sampling import sample, sample_alignments, sample_ranking
from glyphrun.decoding.scorer import Scorer, ranked, scored
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import Emitting, Generative, Memory, Ranking, Recognizer, Refinable, TokenHypothesis

EVERYTHING = sys.maxsize  # asked of a recognizer that ranks its whole answer space


def search(
    recognizer: Recognizer,
    memory: Memory,
    settings: DecodeSettings,
    scorer: Scorer | None = None,
    record: Record | None = None,
) -> list[list[TokenHypothesis]]:
    """The best readings of every item of the memory, best first; scorer: what else is known of texts, for a beam.

    record: what a wider beam over the same memory left, or what this one is to leave; other searches have no use for it.
    Raises TypeError if the recognizer cannot search as the settings ask, ValueError for a scorer without a beam.
    """
    if scorer is not None and settings.search != "beam":
        raise ValueError(
            f"a scorer acts inside a beam and the search is {settings.search}: set search: beam, or correct the n-best "
            "alone (lm_fusion: rerank)"
        )
    if isinstance(recognizer, Ranking):
        return _ranking(recognizer, memory, settings, scorer)
    if isinstance(recognizer, Emitting):
        return _along_the_line(recognizer, memory, settings, scorer)
    generative = _generative(recognizer)
    if settings.search == "beam":
        return _beam(generative, memory, settings, scorer, record)
    if settings.search == "sample":
        return sample(generative, memory, settings)
    if settings.search == "greedy":
        tokens, scores = greedy(generative, memory)
    else:
        scores, tokens = _refinable(recognizer).parallel(memory).max(-1)
    for _ in range(settings.refine_iters):
        scores, tokens = _refinable(recognizer).refine(memory, tokens).max(-1)
    return [[hypothesis] for hypothesis in cut_at_end(tokens, scores, generative.end)]


def _beam(
    recognizer: Generative, memory: Memory, settings: DecodeSettings, scorer: Scorer | None, record: Record | None
) -> list[list[TokenHypothesis]]:
    find = beam if record is None else partial(recorded_beam, record)
    found = find(
        recognizer,
        memory,
        settings.width,
        settings.width if settings.cloze_rescore else settings.n_best,
        length_penalty=settings.length_penalty,
        early_stop=settings.early_stop,
        scorer=scorer,
    )
    if not settings.cloze_rescore:
        return found
    refinable = _refinable(recognizer)
    rescored = cloze_rescore(refinable, memory, found, recognizer.end, recognizer.max_length, settings.length_penalty)
    return [hypotheses[: settings.n_best] for hypotheses in rescored]


def _along_the_line(
    recognizer: Emitting, memory: Memory, settings: DecodeSettings, scorer: Scorer | None
) -> list[list[TokenHypothesis]]:
    if settings.search == "non-autoregressive" or settings.refine_iters or settings.cloze_rescore:
        raise TypeError(f"{type(recognizer).__name__} reads all places at once already and has no refinement")
    log_probs, lengths = recognizer.emissions(memory)
    if settings.search == "beam":
        return prefix_beam(log_probs, lengths, settings.width, settings.n_best, settings.length_penalty, scorer)
    if settings.search == "sample":
        return sample_alignments(log_probs, lengths, settings)
    return [[found] for found in best_path(log_probs, lengths)]


def _ranking(
    recognizer: Ranking, memory: Memory, settings: DecodeSettings, scorer: Scorer | None
) -> list[list[TokenHypothesis]]:
    """Exact, however wide a beam was asked for."""
    if settings.search == "sample":
        return sample_ranking(recognizer.rank(memory, EVERYTHING), settings)
    if scorer is None and not settings.length_penalty:
        return recognizer.rank(memory, settings.n_best)
    return [
        ranked(scored(hypothesis, settings.length_penalty, scorer) for hypothesis in item)[: settings.n_best]
        for item in recognizer.rank(memory, EVERYTHING)
    ]


def _generative(recognizer: Recognizer) -> Generative:
    if not isinstance(recognizer, Generative):
        raise TypeError(f"{type(recognizer).__name__} does not generate tokens step by step")
    return recognizer


def _refinable(recognizer: Recognizer | Generative) -> Refinable:
    if not isinstance(recognizer, Refinable):
        raise TypeError(f"{type(recognizer).__name__} has no non-autoregressive decoding and no refinement")
    return recognizer
