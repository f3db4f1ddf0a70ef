from __future__ import annotations

import pytest
import torch

from glyphrun.decoding.greedy import greedy
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.parseq import PARSeq
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Memory
from tiny_parseq import ENCODER, memory_of, parseq
from toy_scorer import Bigrams


@torch.no_grad()
def greedy_without_leaving(model: PARSeq, memory: Memory) -> list[tuple[tuple[int, ...], float]]:
    """Every item is stepped to the last position, and cut at its first end afterwards."""
    state, tokens = model.start(memory, 1), torch.full((len(memory.tokens),), model.begin)
    chosen, scores = [], []
    for _ in range(model.max_length + 1):
        log_probs, state = model.step(state, tokens)
        score, tokens = log_probs.max(-1)
        chosen.append(tokens.tolist())
        scores.append(score.tolist())
    readings = []
    for item, score in zip(zip(*chosen, strict=True), zip(*scores, strict=True), strict=True):
        length = item.index(0) if 0 in item else len(item)
        readings.append((item[:length], sum(score[: length + 1])))
    return readings


@torch.no_grad()
def test_greedy_with_items_leaving_reads_what_greedy_without_reads():
    model = parseq(6, 5, end_bias=1.0)
    memory = memory_of(48)
    expected = greedy_without_leaving(model, memory)
    assert len({len(reading) for reading, _ in expected}) >= 3  # they leave at different steps
    found = search(model, memory, DecodeSettings())
    assert [item[0].tokens for item in found] == [reading for reading, _ in expected]
    assert [item[0].log_prob for item in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@torch.no_grad()
def test_items_that_ended_are_not_computed_any_further():
    model = parseq(6, 5, end_bias=1.0)
    memory = memory_of(48)
    rows: list[int] = []
    model.decoder.norm.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    greedy(model, memory)
    lengths = [len(reading) for reading, _ in greedy_without_leaving(model, memory)]
    steps = range(max(min(length + 1, 6) for length in lengths))
    assert rows[: len(steps)] == [sum(length >= step for length in lengths) for step in steps]


def test_greedy_search_keeps_one_number_and_one_token_of_each_step():
    model = parseq(6, 5, end_bias=1.0)
    tokens, scores = greedy(model, memory_of(48))
    assert tokens.shape == scores.shape == (48, 6)
    ended = (tokens == model.end).cumsum(1) > 1  # after the first end
    assert 0 < int(ended.sum()) < 48 * 5
    assert bool((scores[ended] == 0).all())
    assert bool((scores[~ended] < 0).all())


@torch.no_grad()
def test_refinement_starts_from_what_greedy_search_reads():
    model, memory = parseq(6, 5, end_bias=1.0), memory_of(12)
    first, _ = greedy(model, memory)
    expected = model.refine(memory, model.refine(memory, first).argmax(-1)).max(-1)
    found = search(model, memory, DecodeSettings(refine_iters=2))
    for item, tokens, scores in zip(found, expected.indices.tolist(), expected.values.tolist(), strict=True):
        length = tokens.index(0) if 0 in tokens else 6
        assert item[0].tokens == tuple(tokens[:length])
        assert item[0].log_prob == pytest.approx(sum(scores[: length + 1]), abs=1e-4)


@torch.no_grad()
def test_non_autoregressive_search_reads_each_place_by_itself():
    model = parseq(6, 4)
    memory = memory_of(8)
    expected = model.parallel(memory).argmax(-1).tolist()
    for item, tokens in zip(search(model, memory, DecodeSettings(search="non-autoregressive")), expected, strict=True):
        assert item[0].tokens == tuple(tokens[: tokens.index(0)] if 0 in tokens else tokens)


@torch.no_grad()
def test_a_ranking_recognizer_answers_exactly_whatever_the_search():
    torch.manual_seed(0)
    model = QueryDigits(QueryDigitsSettings(encoder=ENCODER, decoder_heads=2)).eval()
    memory = memory_of(4)
    exact = model.rank(memory, 4)
    assert search(model, memory, DecodeSettings(n_best=4)) == exact
    assert search(model, memory, DecodeSettings(search="beam", width=2, n_best=4)) == exact


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [0.0, 3.0])
def test_a_ranking_recognizer_ranks_all_its_readings_by_what_else_is_known(length_penalty):
    torch.manual_seed(0)
    model = QueryDigits(QueryDigitsSettings(encoder=ENCODER, decoder_heads=2)).eval()
    memory, scorer = memory_of(4), Bigrams(11)
    settings = DecodeSettings(search="beam", width=2, n_best=6, length_penalty=length_penalty)
    found = search(model, memory, settings, scorer)
    for item, everything in zip(found, model.rank(memory, 111), strict=True):
        expected = sorted(
            ((h.log_prob + scorer.total(h.tokens)) / (len(h.tokens) + 1) ** length_penalty for h in everything),
            reverse=True,
        )
        assert [hypothesis.score for hypothesis in item] == pytest.approx(expected[:6], abs=1e-9)
    assert {len(item[0].tokens) for item in found} == ({2} if length_penalty else {1})


def test_a_scorer_without_a_beam_is_refused():
    with pytest.raises(ValueError, match="a scorer acts inside a beam and the search is greedy: set search: beam"):
        search(parseq(3, 2), memory_of(1), DecodeSettings(), Bigrams(4))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 4}, "width 4 needs search: beam"),
        ({"length_penalty": 1.0}, "length_penalty 1.0 needs search: beam; here it is greedy"),
        ({"search": "sample", "early_stop": True}, "early_stop True needs search: beam; here it is sample"),
        ({"cloze_rescore": True}, "cloze_rescore True needs search: beam"),
        ({"search": "beam", "temperature": 0.7}, "temperature 0.7 needs search: sample; here it is beam"),
        ({"top_k": 5}, "top_k 5 needs search: sample"),
        ({"top_p": 0.9}, "top_p 0.9 needs search: sample"),
        ({"samples": 5}, "samples 5 needs search: sample"),
        ({"search": "beam", "width": 4, "refine_iters": 1}, "set refine_iters to 0"),
        ({"search": "sample", "refine_iters": 1}, "refinement would replace what was drawn: set refine_iters to 0"),
        ({"beams": 4}, "beams"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DecodeSettings(**settings)
