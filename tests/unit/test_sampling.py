from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from glyphrun.decoding.ctc import best_path
from glyphrun.decoding.sampling import distribution, draw, sample_alignments
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.parseq import PARSeq
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Memory, TokenHypothesis
from tiny_parseq import ENCODER, log_prob, memory_of, of_items, parseq

SHAPES = [{}, {"temperature": 0.6}, {"temperature": 2.0, "top_k": 2}, {"top_p": 0.8}, {"top_k": 3, "top_p": 0.9}]


def sampling(**changes: object) -> DecodeSettings:
    return DecodeSettings(**{"search": "sample", "samples": 2000, "n_best": 2000, **changes})


def shares(found: list[TokenHypothesis]) -> dict[tuple[int, ...], float]:
    return {hypothesis.tokens: hypothesis.share for hypothesis in found}


def probable_enough(found: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float], samples: int) -> float:
    """Pearson's chi-square: how probable frequencies are that are further off; rare readings are counted together."""
    assert set(found) <= {reading for reading, probability in expected.items() if probability > 0}
    common = [reading for reading, probability in expected.items() if probability * samples >= 5]
    assert len(common) > 1
    observed = [found.get(reading, 0.0) * samples for reading in common]
    predicted = [expected[reading] * samples for reading in common]
    if sum(predicted) < samples - 1:
        observed.append(samples - sum(observed))
        predicted.append(samples - sum(predicted))
    return float(chisquare(observed, np.array(predicted) * sum(observed) / sum(predicted)).pvalue)


@torch.no_grad()
def drawn_with(model: PARSeq, memory: Memory, settings: DecodeSettings) -> dict[tuple[int, ...], float]:
    """How probable each reading of one item is to be drawn, those without an end among them: by enumeration."""
    expected = {(): 1.0}
    readings: dict[tuple[int, ...], float] = {}
    for _ in range(model.max_length + 1):
        longer = {}
        for prefix, probability in expected.items():
            state = model.start(memory, 1)
            for token in (model.begin, *prefix):
                log_probs, state = model.step(state, torch.tensor([token]))
            for token, share in enumerate(distribution(log_probs, settings)[0].tolist()):
                target = readings if token == model.end else longer
                target[prefix if token == model.end else (*prefix, token)] = probability * share
        expected = longer
    return {**readings, **expected}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_drawn_from_is_shaped_as_in_transformers(shape):
    settings = sampling(**shape)
    log_probs = (torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 2).log_softmax(-1)
    scores = TemperatureLogitsWarper(settings.temperature)(None, log_probs) if settings.temperature != 1 else log_probs
    if settings.top_k is not None:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    shaped = distribution(log_probs, settings)
    torch.testing.assert_close(shaped, scores.softmax(-1).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(shaped.sum(-1), torch.ones(40, dtype=torch.float64))


def test_draws_never_hit_what_has_no_probability():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.25, 0.5, 1 - 2**-53]], dtype=torch.float64)
    assert draw(probabilities, noise).tolist() == [[1, 1, 3, 3]]


@pytest.mark.parametrize("shape", SHAPES)
def test_readings_are_drawn_as_often_as_they_are_probable(shape):
    model, memory, settings = parseq(3, 2), memory_of(3), sampling(**shape)
    found = search(model, memory, settings)
    for item, hypotheses in enumerate(found):
        expected = drawn_with(model, of_items(memory, [item]), settings)
        assert sum(expected.values()) == pytest.approx(1)
        assert sum(shares(hypotheses).values()) == pytest.approx(1)
        assert probable_enough(shares(hypotheses), expected, 2000) > 1e-3


def test_a_sample_has_the_recognizers_own_probability_whatever_it_was_drawn_from():
    model, memory = parseq(3, 4, end_bias=1.0), memory_of(4)
    found = search(model, memory, sampling(temperature=3.0, top_k=3, samples=100))
    checked = 0
    for item, hypotheses in enumerate(found):
        assert [h.log_prob for h in hypotheses] == sorted((h.log_prob for h in hypotheses), reverse=True)
        for hypothesis in hypotheses:
            assert sum(hypothesis.token_log_probs) == pytest.approx(hypothesis.log_prob, abs=1e-6)
            if len(hypothesis.tokens) <= model.max_length:
                own = float(log_prob(model, of_items(memory, [item]), hypothesis.tokens))
                assert hypothesis.log_prob == pytest.approx(own, abs=1e-4)
                checked += 1
    assert checked > 40


@pytest.mark.parametrize("shape", [{"temperature": 1e-6}, {"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-9}])
def test_sampling_from_the_most_probable_tokens_alone_is_greedy_search(shape):
    model, memory = parseq(6, 5, end_bias=1.0), memory_of(16)
    greedy = search(model, memory, DecodeSettings())
    found = search(model, memory, sampling(samples=5, **shape))
    assert [len(item) for item in found] == [1] * 16
    for (sampled,), (first,) in zip(found, greedy, strict=True):
        assert sampled.tokens == first.tokens
        assert sampled.share == 1
        assert sampled.log_prob == pytest.approx(first.log_prob, abs=1e-4)


def test_the_n_best_are_the_most_probable_of_the_samples():
    model, memory = parseq(6, 3), memory_of(8)
    all_of_them = search(model, memory, sampling(samples=12))
    assert max(len(item) for item in all_of_them) > 4
    assert search(model, memory, sampling(samples=12, n_best=2)) == [item[:2] for item in all_of_them]


def test_the_same_seed_draws_the_same_samples_and_another_seed_others():
    model, memory = parseq(6, 3), memory_of(8)
    first = search(model, memory, sampling(samples=4, seed=1))
    assert search(model, memory, sampling(samples=4, seed=1)) == first
    assert search(model, memory, sampling(samples=4, seed=2)) != first


def test_what_is_drawn_for_an_item_does_not_depend_on_its_company():
    model, memory = parseq(4, 4, end_bias=1.0), memory_of(10)
    together = [shares(item) for item in search(model, memory, sampling(samples=8))]
    assert len({tuple(item) for item in together}) > 5
    order = [7, 2, 9, 0]
    assert [shares(i) for i in search(model, of_items(memory, order), sampling(samples=8))] == [
        together[item] for item in order
    ]
    for item in range(10):
        assert [shares(i) for i in search(model, of_items(memory, [item]), sampling(samples=8))] == [together[item]]


def test_items_whose_samples_have_all_ended_are_not_computed_any_further():
    model, memory = parseq(6, 5, end_bias=2.0), memory_of(24)
    rows: list[int] = []
    model.decoder.norm.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    found = search(model, memory, sampling(samples=3))
    steps = [max(min(len(h.tokens) + 1, 6) for h in item) for item in found]
    assert rows == [3 * sum(count > step for count in steps) for step in range(max(steps))]
    assert len(set(rows)) > 2


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_a_ranking_recognizer_draws_whole_readings(shape):
    torch.manual_seed(0)
    model = QueryDigits(QueryDigitsSettings(encoder=ENCODER, decoder_heads=2)).eval()
    memory, settings = memory_of(3), sampling(**shape)
    found = search(model, memory, settings)
    for hypotheses, everything in zip(found, model.rank(memory, 111), strict=True):
        shaped = distribution(torch.tensor([h.log_prob for h in everything]), settings).tolist()
        expected = {h.tokens: share for h, share in zip(everything, shaped, strict=True)}
        assert probable_enough(shares(hypotheses), expected, 2000) > 1e-3
        assert [h.log_prob for h in hypotheses] == sorted((h.log_prob for h in hypotheses), reverse=True)


def emissions(items: int, places: int, vocabulary: int) -> Tensor:
    return torch.randn(items, places, vocabulary, generator=torch.Generator().manual_seed(4)).log_softmax(-1)


def merged_by_hand(alignment: tuple[int, ...]) -> tuple[int, ...]:
    pairs = zip((0, *alignment[:-1]), alignment, strict=True)
    return tuple(token for before, token in pairs if token not in (0, before))


@pytest.mark.parametrize("shape", SHAPES)
def test_alignments_are_drawn_place_by_place_and_their_readings_are_exact(shape):
    log_probs, lengths, settings = emissions(3, 4, 4), torch.tensor([4, 2, 3]), sampling(**shape)
    found = sample_alignments(log_probs, lengths, settings)
    for hypotheses, own, length in zip(found, log_probs, lengths.tolist(), strict=True):
        shaped = distribution(own, settings).numpy()
        expected: Counter[tuple[int, ...]] = Counter()
        exact: Counter[tuple[int, ...]] = Counter()
        for alignment in product(range(4), repeat=length):
            reading, at = merged_by_hand(alignment), (np.arange(length), list(alignment))
            expected[reading] += float(shaped[at].prod())
            exact[reading] += float(np.exp(own.double().numpy()[at].sum()))
        assert probable_enough(shares(hypotheses), expected, 2000) > 1e-3
        for hypothesis in hypotheses:
            assert np.exp(hypothesis.log_prob) == pytest.approx(exact[hypothesis.tokens], abs=1e-6)


def test_alignments_drawn_from_the_most_probable_tokens_alone_are_the_best_path():
    log_probs, lengths = emissions(8, 9, 5), torch.tensor([9, 9, 4, 7, 1, 9, 8, 2])
    found = sample_alignments(log_probs, lengths, sampling(temperature=1e-6, samples=3))
    assert [item[0].tokens for item in found] == [reading.tokens for reading in best_path(log_probs, lengths)]
    assert [len(item) for item in found] == [1] * 8


def test_alignments_do_not_depend_on_padding():
    log_probs, lengths, settings = emissions(4, 9, 5), torch.tensor([9, 3, 6, 5]), sampling(samples=20)
    together = sample_alignments(log_probs, lengths, settings)
    for item, length in enumerate(lengths.tolist()):
        alone = sample_alignments(log_probs[item : item + 1, :length], lengths[item : item + 1], settings)[0]
        assert shares(alone) == shares(together[item])
