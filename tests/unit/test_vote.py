from __future__ import annotations

from itertools import permutations
from math import exp, log

import pytest

from glyphrun.decoding.vote import Ballot, Hypothesis, vote


def frame(*readings: tuple[str, float]) -> list[Hypothesis]:
    """One frame's readings with their probabilities, best first."""
    return [Hypothesis(text, log(probability), (log(probability),)) for text, probability in readings]


def shares(hypotheses: list[Hypothesis]) -> dict[str, float]:
    return {hypothesis.text: exp(hypothesis.log_prob) for hypothesis in hypotheses}


def test_a_reading_has_its_share_of_the_summed_probabilities():
    frames = [frame(("23", 0.8), ("28", 0.2)), frame(("28", 0.6), ("23", 0.3)), frame(("3", 0.5))]
    ranked, _ = vote(frames, floor=0.0)
    assert [hypothesis.text for hypothesis in ranked] == ["23", "28", "3"]
    assert shares(ranked) == pytest.approx({"23": 1.1 / 2.4, "28": 0.8 / 2.4, "3": 0.5 / 2.4})
    assert sum(shares(ranked).values()) == pytest.approx(1)


def test_two_doubtful_frames_outvote_one_sure_frame():
    ranked, _ = vote([frame(("23", 0.9)), frame(("28", 0.5)), frame(("28", 0.45))], floor=0.2)
    assert ranked[0].text == "28"
    assert exp(ranked[0].log_prob) == pytest.approx(0.95 / 1.85)


def test_readings_under_the_floor_do_not_count():
    frames = [frame(("23", 0.5)), *[frame(("28", 0.19))] * 9]
    ranked, ballots = vote(frames, floor=0.2)
    assert shares(ranked) == pytest.approx({"23": 1.0})
    assert [ballot.weight for ballot in ballots] == [0.5] + [0.0] * 9
    assert vote(frames, floor=0.1)[0][0].text == "28"


def test_a_frame_exactly_at_the_floor_counts():
    _, ballots = vote([[Hypothesis("4", log(0.25), (log(0.25),))]], floor=exp(log(0.25)))
    assert ballots[0].weight == pytest.approx(0.25)


def test_frames_that_say_nothing_is_readable_do_not_outvote_one_that_reads():
    frames = [*[frame(("", 0.99))] * 7, frame(("23", 0.4), ("", 0.3))]
    ranked, ballots = vote(frames, floor=0.2)
    assert shares(ranked) == pytest.approx({"23": 1.0})
    assert ballots[0] == Ballot(0, "", pytest.approx(0.99), 0.0)
    assert ballots[7] == Ballot(7, "23", pytest.approx(0.4), pytest.approx(0.4))


def test_a_tracklet_in_which_no_frame_reads_is_not_readable():
    ranked, ballots = vote([frame(("", 0.9)), frame(("", 0.7)), frame(("5", 0.1))], floor=0.2)
    assert [hypothesis.text for hypothesis in ranked] == [""]
    assert exp(ranked[0].log_prob) == pytest.approx(1.6 / 1.7)
    assert all(ballot.weight == 0 for ballot in ballots)


def test_only_readings_under_the_floor_give_nothing_with_no_confidence():
    ranked, _ = vote([frame(("5", 0.1)), frame(("6", 0.15))], floor=0.2)
    assert ranked[0].text == ""
    assert exp(ranked[0].log_prob) < 1e-6


def test_ties_go_to_the_smaller_text_in_any_order_of_frames():
    for order in permutations([frame(("9", 0.5)), frame(("10", 0.5)), frame(("1", 0.5))]):
        assert [hypothesis.text for hypothesis in vote(order, floor=0.2)[0]] == ["1", "10", "9"]


def test_a_reading_keeps_the_character_probabilities_of_its_surest_frame():
    sure = Hypothesis("23", log(0.72), (log(0.8), log(0.9), 0.0))
    doubtful = Hypothesis("23", log(0.3), (log(0.5), log(0.6), 0.0))
    for frames in ([[sure], [doubtful]], [[doubtful], [sure]]):
        assert vote(frames, floor=0.2)[0][0].token_log_probs == sure.token_log_probs


def test_a_still_image_is_a_vote_of_one():
    ranked, ballots = vote([frame(("7", 0.6), ("1", 0.3))], floor=0.2)
    assert shares(ranked) == pytest.approx({"7": 2 / 3, "1": 1 / 3})
    assert ballots == [Ballot(0, "7", pytest.approx(0.6), pytest.approx(0.6))]
