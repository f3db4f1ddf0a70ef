from __future__ import annotations

from math import exp, inf, log

import numpy as np
import pytest
import torch
from torch import Tensor

from glyphrun.decoding.ctc import best_path, prefix_beam, score
from plain_ctc import emissions, every_reading, plain_prefix_beam

WIDE = 500  # wider than the number of readings of any case below


@pytest.mark.parametrize(("vocabulary", "places"), [(2, 1), (2, 7), (3, 6), (4, 5)])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_a_beam_as_wide_as_the_space_finds_every_reading_with_the_probability_of_all_its_alignments(
    vocabulary, places, spread
):
    log_probs = emissions(0, 3, places, vocabulary, spread)
    lengths = torch.tensor([places, max(places - 2, 1), places])
    for item, found in enumerate(prefix_beam(log_probs, lengths, WIDE, WIDE)):
        expected = every_reading(log_probs[item, : lengths[item]])
        assert {hypothesis.tokens: exp(hypothesis.log_prob) for hypothesis in found} == pytest.approx(
            expected, rel=1e-5
        )
        assert [hypothesis.log_prob for hypothesis in found] == sorted((h.log_prob for h in found), reverse=True)
        assert sum(exp(hypothesis.log_prob) for hypothesis in found) == pytest.approx(1.0)


def test_each_character_is_scored_as_the_next_one_after_those_before_it():
    log_probs = emissions(1, 1, 5, 3)
    everything = every_reading(log_probs[0])

    def beginning(prefix: tuple[int, ...]) -> float:
        return sum(p for reading, p in everything.items() if reading[: len(prefix)] == prefix)

    for found in prefix_beam(log_probs, torch.tensor([5]), WIDE, WIDE)[0]:
        steps = [beginning(found.tokens[: k + 1]) / beginning(found.tokens[:k]) for k in range(len(found.tokens))]
        ending = everything[found.tokens] / beginning(found.tokens)
        assert [exp(entry) for entry in found.token_log_probs] == pytest.approx([*steps, ending], rel=1e-5)
        assert sum(found.token_log_probs) == pytest.approx(found.log_prob)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_leaving_out_improbable_characters_loses_no_prefix_that_a_full_search_keeps(width, spread):
    log_probs = emissions(2, 8, 30, 40, spread)
    found = prefix_beam(log_probs, torch.full((8,), 30), width, width)
    for item, hypotheses in enumerate(found):
        assert {hypothesis.tokens for hypothesis in hypotheses} == plain_prefix_beam(log_probs[item], width)


def test_a_prefix_that_left_the_beam_and_came_back_is_one_prefix():
    # Few characters and many places: in a narrow beam prefixes go and return all the time.
    log_probs = emissions(3, 20, 60, 3, 0.7)
    for item, hypotheses in enumerate(prefix_beam(log_probs, torch.full((20,), 60), 4, 4)):
        tokens = [hypothesis.tokens for hypothesis in hypotheses]
        assert len(set(tokens)) == 4
        assert set(tokens) == plain_prefix_beam(log_probs[item], 4)


def test_a_beam_finds_the_reading_whose_alignments_are_many_where_the_best_path_does_not():
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()  # blank and one character
    lengths = torch.tensor([2])
    (path,) = best_path(log_probs, lengths)
    ((best, second),) = prefix_beam(log_probs, lengths, 4, 2)
    assert (path.tokens, best.tokens, second.tokens) == ((), (1,), ())
    assert exp(path.log_prob) == pytest.approx(0.36)
    assert exp(best.log_prob) == pytest.approx(0.64)


def test_the_best_path_merges_repeats_and_a_blank_keeps_two_apart():
    def certain(*tokens: int) -> Tensor:
        return torch.full((1, len(tokens), 3), log(0.05)).scatter(2, torch.tensor(tokens).view(1, -1, 1), log(0.9))

    for alignment, reading in [((1, 1, 0, 2, 2), (1, 2)), ((1, 0, 1, 1, 0), (1, 1)), ((0, 0), ()), ((2,), (2,))]:
        (found,) = best_path(certain(*alignment), torch.tensor([len(alignment)]))
        assert found.tokens == reading
        expected = every_reading(certain(*alignment)[0])[reading]
        assert exp(found.log_prob) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("places", [(9, 4, 1, 7), (3, 3, 9, 2)])
def test_what_lies_past_a_lines_end_and_beside_it_in_the_batch_changes_nothing(places):
    log_probs = emissions(4, 4, 9, 5, 2.0)
    lengths = torch.tensor(places)
    together = prefix_beam(log_probs, lengths, 6, 3), best_path(log_probs, lengths)
    for item, length in enumerate(places):
        alone = log_probs[item : item + 1, :length], lengths[item : item + 1]
        found, expected = [*prefix_beam(*alone, 6, 3)[0], *best_path(*alone)], [*together[0][item], together[1][item]]
        assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-12)


def test_a_character_that_cannot_be_is_never_read():
    log_probs = torch.full((1, 6, 4), -inf)
    log_probs[0, :, 0] = log(0.25)
    log_probs[0, :, 2] = log(0.75)
    with np.errstate(invalid="raise"):
        (found,) = prefix_beam(log_probs, torch.tensor([6]), 50, 50)
    assert {hypothesis.tokens for hypothesis in found} == {(2,) * count for count in range(4)}
    assert sum(exp(hypothesis.log_prob) for hypothesis in found) == pytest.approx(1.0)


def test_a_reading_that_does_not_fit_its_line_has_no_probability():
    ((fits, too_long),) = score(emissions(5, 1, 3, 3), torch.tensor([3]), [[(1, 1), (1, 1, 1)]])
    assert fits.log_prob > -20
    assert too_long.log_prob == sum(too_long.token_log_probs) == -inf


def test_probabilities_stay_exact_where_they_are_far_below_the_smallest_number():
    log_probs = emissions(6, 1, 250, 30, 12.0)
    unlikely = tuple(log_probs[0, ::5, 1:].argmin(-1).add(1).tolist())
    ((found,),) = score(log_probs, torch.tensor([250]), [[unlikely]])
    expected = -torch.nn.functional.ctc_loss(
        log_probs.double().transpose(0, 1),
        torch.tensor([unlikely]),
        torch.tensor([250]),
        torch.tensor([len(unlikely)]),
        reduction="sum",
    )
    assert found.log_prob < -800
    assert found.log_prob == pytest.approx(float(expected), rel=1e-9)
    assert sum(found.token_log_probs) == pytest.approx(found.log_prob)


def test_no_items_have_no_readings():
    assert best_path(torch.zeros(0, 4, 3), torch.zeros(0, dtype=torch.long)) == []
    assert prefix_beam(torch.zeros(0, 4, 3), torch.zeros(0, dtype=torch.long), 2, 1) == []
