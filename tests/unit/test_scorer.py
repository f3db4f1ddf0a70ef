from __future__ import annotations

from math import exp, inf, log

import pytest
import torch

from glyphrun.decoding.ctc import prefix_beam
from glyphrun.decoding.scorer import Memoised, ranked, scored
from glyphrun.models.recognizer import TokenHypothesis
from plain_ctc import emissions, every_reading, plain_prefix_beam
from toy_scorer import Bigrams, BoundedBigrams

WIDE = 500  # wider than the number of readings of any case below


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
@pytest.mark.parametrize("bonus", [0.0, 4.0])
def test_a_prefix_beam_as_wide_as_the_space_ranks_all_readings_by_what_else_is_known(length_penalty, bonus):
    log_probs, scorer = emissions(0, 3, 5, 4), Bigrams(4, bonus=bonus)
    lengths = torch.tensor([5, 3, 5])
    for item, found in enumerate(prefix_beam(log_probs, lengths, WIDE, WIDE, length_penalty, scorer)):
        exact = every_reading(log_probs[item, : lengths[item]])
        expected = {
            text: (log(probability) + scorer.total(text)) / (len(text) + 1) ** length_penalty
            for text, probability in exact.items()
        }
        assert {hypothesis.tokens: hypothesis.score for hypothesis in found} == pytest.approx(expected, abs=1e-5)
        assert [hypothesis.tokens for hypothesis in found] == sorted(expected, key=lambda text: -expected[text])
        assert {h.tokens: exp(h.log_prob) for h in found} == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_narrow_prefix_beam_keeps_the_prefixes_that_are_best_with_the_scorer(width):
    log_probs, scorer = emissions(1, 6, 20, 7, 2.0), Bigrams(7)
    lengths = torch.full((6,), 20)

    def said(prefix: tuple[int, ...]) -> float:
        return scorer.total(prefix) - scorer.finish(prefix[-1] if prefix else 0)

    fused = prefix_beam(log_probs, lengths, width, width, 0.0, scorer)
    for item, hypotheses in enumerate(fused):
        assert {hypothesis.tokens for hypothesis in hypotheses} == plain_prefix_beam(log_probs[item], width, said)
    alone = prefix_beam(log_probs, lengths, width, width)
    assert [item[0].tokens for item in fused] != [item[0].tokens for item in alone]


def test_a_scorer_is_asked_each_question_once():
    scorer = Bigrams(7)
    prefix_beam(emissions(1, 6, 20, 7), torch.full((6,), 20), 4, 4, 0.0, scorer)
    assert len(scorer.asked) == len(set(scorer.asked)) > 20


def test_the_most_that_a_scorer_adds_is_known_only_if_it_says_so():
    assert Memoised(Bigrams(3)).most == inf
    assert Memoised(BoundedBigrams(3)).most == 0
    assert Memoised(BoundedBigrams(3, bonus=0.7)).most == 0.7


def test_a_hypothesis_is_ranked_by_its_log_probability_unless_something_else_is_said():
    plain = TokenHypothesis((1, 2), -3.0, (-1.0, -1.5, -0.5))
    assert plain.score == -3.0
    assert scored(plain, 0.0, None) == plain
    assert scored(plain, 1.0, None).score == -1.0
    scorer = Bigrams(3)
    assert scored(plain, 2.0, scorer).score == pytest.approx((-3.0 + scorer.total((1, 2))) / 9)
    other = TokenHypothesis((1, 1), -3.0, (-3.0, 0.0, 0.0))
    assert ranked([plain, other, scored(plain, 1.0, None)]) == [scored(plain, 1.0, None), other, plain]
