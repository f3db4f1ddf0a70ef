"""What a wide beam asked answers the narrower ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glyphrun.decoding.beam import beam
from glyphrun.decoding.replay import Record, recorded_beam
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import TokenHypothesis
from tiny_parseq import memory_of, parseq
from toy_scorer import Bigrams

ITEMS = 48
OPTIONS: list[dict[str, Any]] = [
    {},
    {"early_stop": True},
    {"length_penalty": 1.0},
    {"length_penalty": -1.0},
    {"length_penalty": 1.0, "early_stop": True},
    {"scorer": Bigrams(7, weight=0.3)},
]


def assert_same(found: list[list[TokenHypothesis]], expected: list[list[TokenHypothesis]]) -> None:
    assert [[h.tokens for h in item] for item in found] == [[h.tokens for h in item] for item in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert [h.score for h in mine] == pytest.approx([h.score for h in theirs], rel=1e-6, abs=1e-5)
        for one, other in zip(mine, theirs, strict=True):
            assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("end_bias", [-1.0, 1.0])
def test_every_narrower_beam_reads_out_of_the_widest_what_it_reads_alone(options, end_bias):
    model, memory = parseq(6, 5, end_bias=end_bias), memory_of(ITEMS)
    record = Record()
    assert_same(recorded_beam(record, model, memory, 7, 3, **options), beam(model, memory, 7, 3, **options))
    for width in range(1, 8):
        assert_same(recorded_beam(record, model, memory, width, 3, **options), beam(model, memory, width, 3, **options))


def test_the_recognizer_is_asked_again_of_the_few_items_alone_whose_hypotheses_were_crowded_out():
    model, memory = parseq(6, 5, end_bias=1.0), memory_of(ITEMS)
    record, rows = Record(), []
    recorded_beam(record, model, memory, 7, 3)
    hook = model.decoder.norm.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    recorded_beam(record, model, memory, 5, 3)
    hook.remove()
    assert 0 < record.anew < ITEMS / 4
    assert max(rows) == 5 * record.anew


def test_one_record_serves_other_penalties_and_stops_as_well():
    model, memory, record = parseq(6, 5, end_bias=1.0), memory_of(ITEMS), Record()
    recorded_beam(record, model, memory, 7, 3)
    for options in OPTIONS[1:5]:
        assert_same(recorded_beam(record, model, memory, 4, 2, **options), beam(model, memory, 4, 2, **options))


def test_what_was_not_recorded_is_not_answered():
    model, memory, record = parseq(6, 5), memory_of(2), Record()
    recorded_beam(record, model, memory, 3, 3)
    with pytest.raises(
        ValueError, match="a record of 4 tokens cannot answer a beam that looks at 6: record the widest"
    ):
        recorded_beam(record, model, memory, 5, 3)


def test_a_search_leaves_and_follows_a_record_with_its_cloze_pass():
    model, memory, record = parseq(4, 4, end_bias=1.0), memory_of(12), Record()
    for width in (5, 3):
        settings = DecodeSettings(search="beam", width=width, cloze_rescore=True)
        with torch.no_grad():
            assert_same(search(model, memory, settings, None, record), search(model, memory, settings))
    assert record.said
