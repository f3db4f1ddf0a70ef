from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from glyphrun.decoding.search import beam, greedy, search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Memory

ENCODER = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)


def parseq(characters: int, max_length: int, end_bias: float = 0.0) -> PARSeq:
    torch.manual_seed(11)
    model = PARSeq(PARSeqSettings(encoder=ENCODER, decoder_heads=2, decoder_depth=2), characters, max_length).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        model.pos_queries.mul_(40)
        model.text_embed.embedding.weight.mul_(20)
        model.head.weight.mul_(4)
        model.head.bias[0] += end_bias
    return model


def memory_of(items: int) -> Memory:
    """Features that differ more between items than those of an encoder at its first weights."""
    tokens = torch.randn(items, 6, ENCODER.width, generator=torch.Generator().manual_seed(2)) * 4
    return Memory(tokens, None, tokens, torch.ones(items, 1, dtype=torch.bool))


def of_item(memory: Memory, item: int) -> Memory:
    """One of the items that ``memory_of`` makes, alone."""
    tokens = memory.tokens[item : item + 1]
    return Memory(tokens, None, tokens, memory.frame_mask[item : item + 1])


@torch.no_grad()
def log_prob(model: PARSeq, memory: Memory, reading: tuple[int, ...]) -> Tensor:
    """Of a reading and its end, for every item: (B,)."""
    state, total = model.start(memory, 1), torch.zeros(len(memory.tokens))
    for given, following in zip((model.begin, *reading), (*reading, model.end), strict=True):
        log_probs, state = model.step(state, torch.full((len(memory.tokens),), given))
        total = total + log_probs[:, following]
    return total


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


@torch.no_grad()
def test_a_beam_as_wide_as_the_space_finds_the_exact_n_best():
    model = parseq(3, 2)
    memory = memory_of(16)
    space = [reading for length in range(3) for reading in product((1, 2, 3), repeat=length)]
    assert len(space) == 13
    scores = torch.stack([log_prob(model, memory, reading) for reading in space], dim=1)  # (B, 13)
    best = scores.topk(5, dim=1)
    found = beam(model, memory, width=13, n_best=5)
    assert len({item[0].tokens for item in found}) > 2
    for item, values, places in zip(found, best.values.tolist(), best.indices.tolist(), strict=True):
        assert [hypothesis.tokens for hypothesis in item] == [space[place] for place in places]
        assert [hypothesis.log_prob for hypothesis in item] == pytest.approx(values, abs=1e-4)
        for hypothesis in item:
            assert sum(hypothesis.token_log_probs) == pytest.approx(hypothesis.log_prob, abs=1e-4)
            assert len(hypothesis.token_log_probs) == len(hypothesis.tokens) + 1


@torch.no_grad()
@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_beam_reads_the_same_in_a_batch_as_alone(width):
    model = parseq(4, 4, end_bias=1.0)
    memory = memory_of(12)
    together = beam(model, memory, width, 2)
    for item, found in enumerate(together):
        alone = beam(model, of_item(memory, item), width, 2)[0]
        assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in alone]
        assert [h.log_prob for h in found] == pytest.approx([h.log_prob for h in alone], abs=1e-4)


@torch.no_grad()
def test_a_beam_of_one_reads_what_greedy_reads_unless_another_ending_is_worth_more():
    model = parseq(4, 6, end_bias=1.0)
    memory = memory_of(64)
    agreeing = disagreeing = 0
    pairs = zip(beam(model, memory, 1, 1), search(model, memory, DecodeSettings()), strict=True)
    for (narrow,), (first,) in pairs:
        if len(first.tokens) > model.max_length:
            continue  # greedy found no end within the longest label, and a beam lists ended readings alone
        if narrow.tokens == first.tokens:
            assert narrow.log_prob == pytest.approx(first.log_prob, abs=1e-4)
            agreeing += 1
        else:
            assert narrow.log_prob > first.log_prob
            disagreeing += 1
    assert agreeing > 30
    assert disagreeing < agreeing


@torch.no_grad()
def test_a_wider_beam_finds_nothing_worse_on_average():
    model = parseq(5, 5)
    memory = memory_of(32)
    best = [sum(item[0].log_prob for item in beam(model, memory, width, 1)) for width in (1, 4, 16)]
    assert best[0] < best[1] < best[2] + 1e-6


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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 4}, "width 4 needs search: beam"),
        ({"search": "beam", "width": 4, "refine_iters": 1}, "set refine_iters to 0"),
        ({"beams": 4}, "beams"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DecodeSettings(**settings)
