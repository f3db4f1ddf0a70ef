from __future__ import annotations

from itertools import permutations
from math import exp, log

import pytest
from pydantic import ValidationError

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, VoteRules, ballots, combine, vote
from glyphrun.graphemes import graphemes

METHODS = ("sum", "majority", "confidence", "longest", "rover", "mbr")
PRIORS = {1: 0.39, 2: 0.61}


def frame(*readings: tuple[str, float]) -> list[Hypothesis]:
    """One frame's readings with their probabilities, best first."""
    return [Hypothesis(text, log(probability), (log(probability),)) for text, probability in readings]


def spelt(text: str, *confidences: float) -> list[Hypothesis]:
    """One reading with a probability for each character."""
    scores = tuple(map(log, confidences))
    return [Hypothesis(text, sum(scores), scores, tuple(text))]


def shares(hypotheses: list[Hypothesis]) -> dict[str, float]:
    return {hypothesis.text: exp(hypothesis.log_prob) for hypothesis in hypotheses}


def texts(hypotheses: list[Hypothesis]) -> list[str]:
    return [hypothesis.text for hypothesis in hypotheses]


def test_a_reading_has_its_share_of_the_summed_probabilities():
    frames = [frame(("23", 0.8), ("28", 0.2)), frame(("28", 0.6), ("23", 0.3)), frame(("3", 0.5))]
    ranked, weights = combine(frames)
    assert texts(ranked) == ["23", "28", "3"]
    assert shares(ranked) == pytest.approx({"23": 1.1 / 2.4, "28": 0.8 / 2.4, "3": 0.5 / 2.4})
    assert sum(shares(ranked).values()) == pytest.approx(1)
    assert weights == pytest.approx([0.8, 0.6, 0.5])


def test_two_doubtful_frames_outvote_one_sure_frame():
    ranked, _ = combine([frame(("23", 0.9)), frame(("28", 0.5)), frame(("28", 0.45))], floor=0.2)
    assert ranked[0].text == "28"
    assert exp(ranked[0].log_prob) == pytest.approx(0.95 / 1.85)


def test_the_five_other_votes_of_five_readers():
    voters = [
        frame(("kat", 0.9), ("cat", 0.08)),
        frame(("cat", 0.55), ("kat", 0.35)),
        frame(("cat", 0.3), ("cot", 0.2)),
        frame(("cart", 0.2)),
        frame(("dog", 0.25)),
    ]
    majority, weights = combine(voters, "majority")
    assert shares(majority) == pytest.approx({"cat": 2 / 5, "kat": 1 / 5, "dog": 1 / 5, "cart": 1 / 5})
    assert texts(majority) == ["cat", "kat", "dog", "cart"]  # equal numbers go by confidence
    assert weights == [1, 1, 1, 1, 1]
    confidence, weights = combine(voters, "confidence")
    assert shares(confidence) == pytest.approx(
        {"kat": 0.9 / 2.2, "cat": 0.85 / 2.2, "dog": 0.25 / 2.2, "cart": 0.2 / 2.2}
    )
    assert weights == pytest.approx([0.9, 0.55, 0.3, 0.2, 0.25])
    longest, _ = combine(voters, "longest")
    assert texts(longest) == ["cart", "kat", "cat", "dog"]
    assert exp(longest[0].log_prob) == pytest.approx(0.2 / 2.2)
    # kat misses cat, cot, cart and dog by 1, 2, 2 and 3; cat misses kat, cot, cart and dog by 1, 1, 1 and 3.
    risk, _ = combine(voters, "mbr")
    total = 1.25 + 0.93 + 0.2 + 0.2 + 0.25
    assert texts(risk)[:2] == ["cat", "kat"]  # 1.25 + 0.2 + 0.2 + 0.75 against 0.93 + 0.4 + 0.4 + 0.75 expected edits
    assert exp(risk[0].log_prob) == pytest.approx(0.93 / total)
    assert texts(combine(voters, "sum")[0])[0] == "kat"


def test_characters_are_voted_for_one_by_one():
    voters = [spelt("2x4", 0.9, 0.3, 0.9), spelt("y34", 0.2, 0.8, 0.9), spelt("234", 0.5, 0.5, 0.4), spelt("9", 0.3)]
    ranked, weights = combine(voters, "rover")
    best = ranked[0]
    # The silence of 9 weighs as its one character does, in the two slots where it says nothing.
    ones = [1.4 / 1.9, 1.3 / 1.9, 2.2 / 2.5]
    assert best.text == "234" and best.pieces == ("2", "3", "4")
    assert [exp(score) for score in best.token_log_probs[:3]] == pytest.approx(ones)
    assert exp(best.log_prob) == pytest.approx(ones[0] * ones[1] * ones[2])
    assert sum(best.token_log_probs) == pytest.approx(best.log_prob)
    assert set(texts(ranked)[1:]) == {"2x4", "y34", "9"}
    assert weights == pytest.approx([0.243, 0.144, 0.1, 0.3])


def test_an_aligned_vote_finds_a_text_that_nobody_read():
    voters = [spelt("2x4", 0.9, 0.3, 0.9), spelt("y34", 0.2, 0.8, 0.9), spelt("23z", 0.5, 0.5, 0.1)]
    ranked, _ = combine(voters, "rover")
    assert ranked[0].text == "234"
    assert set(texts(ranked)[1:]) == {"2x4", "y34", "23z"}


def test_a_character_that_most_do_not_see_is_left_out_and_lowers_the_confidence():
    ranked, _ = combine([spelt("1743", 0.8, 0.4, 0.8, 0.8), spelt("143", 0.9, 0.9, 0.9)], "rover")
    assert ranked[0].text == "143"
    assert exp(ranked[0].token_log_probs[-1]) == pytest.approx(0.9 / 1.3)  # silence against the 7
    assert exp(ranked[0].log_prob) == pytest.approx(0.9 / 1.3)


def test_no_vote_takes_a_conjunct_apart():
    one, other = "କ୍ଷମା", "କ୍ତମା"  # k-ssa-ma and k-ta-ma: the conjuncts differ in their last code point
    characters = graphemes(one)
    assert len(characters) == 2 < len(one)

    def read(text: str, confidence: float) -> list[Hypothesis]:
        return [Hypothesis(text, log(confidence), (0.0,) * (len(text) - 1) + (log(confidence),), tuple(text))]

    voters = [read(one, 0.5), read(other, 0.8), read(one, 0.4)]
    for method in METHODS:
        ranked, _ = combine(voters, method, segment=graphemes)
        assert set(texts(ranked)) <= {one, other}, method
        assert all(graphemes(piece) == [piece] for piece in ranked[0].pieces if method == "rover")
    assert combine(voters, "rover", segment=graphemes)[0][0].pieces == tuple(characters)


def test_characters_weigh_what_the_tokens_they_share_in_do():
    subwords = [Hypothesis("2345", log(0.45), (log(0.5), log(0.9), 0.0), ("234", "5"))]
    ranked, _ = combine([subwords, spelt("9995", 0.6, 0.4, 0.6, 0.1)], "rover")
    assert ranked[0].text == "9395"


def test_where_tokens_do_not_spell_the_text_every_character_has_the_geometric_mean():
    corrected = [Hypothesis("27", log(0.49), (log(0.9), log(0.9), 0.0), ("2", "1"))]
    ranked, _ = combine([corrected, spelt("38", 0.71, 0.69)], "rover")
    assert ranked[0].text == "37"


def test_weights_scale_what_a_voter_says():
    voters = [frame(("1", 0.9)), frame(("2", 0.5))]
    for method in ("sum", "majority", "confidence", "rover", "mbr"):
        assert combine(voters, method, weights=[1, 3])[0][0].text == "2"
        assert combine(voters, method, weights=[3, 1])[0][0].text == "1"
    ranked, weights = combine(voters, "majority", weights=[0, 3])
    assert texts(ranked) == ["2"] and weights == [0, 3]


def test_priors_of_lengths_weigh_readings_before_one_is_chosen():
    voters = [frame(("7", 0.5)), frame(("27", 0.4))]
    for method in ("sum", "confidence", "majority", "mbr"):
        assert combine(voters, method)[0][0].text == "7"
        ranked, _ = combine(voters, method, length_priors=PRIORS)
        assert ranked[0].text == "27"
    ranked, weights = combine(voters, "sum", length_priors=PRIORS)
    assert shares(ranked) == pytest.approx({"27": 0.244 / 0.439, "7": 0.195 / 0.439})
    assert weights == pytest.approx([0.5, 0.4])  # the prior is the reading's, not the frame's
    voters = [spelt("7", 0.5), spelt("27", 0.6, 0.6)]
    slots = combine(voters, "rover", length_priors={1: 0.9, 2: 0.1})[0][0]
    assert slots.text == "7"


def test_a_length_without_a_prior_cannot_be():
    voters = [frame(("123", 0.9), ("12", 0.05)), frame(("7", 0.1))]
    for method in ("sum", "mbr"):
        assert set(texts(combine(voters, method, length_priors=PRIORS)[0])) == {"12", "7"}
    for method in ("majority", "confidence", "longest", "rover"):
        assert texts(combine(voters, method, length_priors=PRIORS)[0]) == ["7"]


def test_the_priors_choose_among_the_readings_of_a_single_voter_too():
    ranked, _ = combine([frame(("7", 0.5), ("27", 0.4))], length_priors=PRIORS)
    assert texts(ranked) == ["27", "7"]
    assert shares(ranked) == pytest.approx({"7": 0.5, "27": 0.4})


@pytest.mark.parametrize("method", METHODS)
def test_readings_under_the_floor_do_not_count(method):
    frames = [frame(("23", 0.5)), *[frame(("288", 0.19))] * 9]
    ranked, weights = combine(frames, method, floor=0.2)
    assert shares(ranked) == pytest.approx({"23": 1.0})
    assert [weight > 0 for weight in weights] == [True] + [False] * 9
    assert combine(frames, method, floor=0.1)[0][0].text == "288"


def test_a_frame_exactly_at_the_floor_counts():
    _, weights = combine([[Hypothesis("4", log(0.25), (log(0.25),))]], floor=exp(log(0.25)))
    assert weights == pytest.approx([0.25])


@pytest.mark.parametrize("method", METHODS)
def test_frames_that_say_nothing_is_readable_do_not_outvote_one_that_reads(method):
    frames = [*[frame(("", 0.99))] * 7, frame(("23", 0.4), ("", 0.3))]
    ranked, weights = combine(frames, method, floor=0.2)
    assert shares(ranked) == pytest.approx({"23": 1.0})
    assert ballots(frames, weights)[0] == Ballot(0, "", pytest.approx(0.99), 0.0)
    assert weights[7] == pytest.approx(1.0 if method == "majority" else 0.4)


@pytest.mark.parametrize("method", METHODS)
def test_recognizers_that_say_nothing_is_readable_may_outvote_one_that_reads(method):
    members = [frame(("", 0.9)), frame(("", 0.8)), frame(("7", 0.6))]
    ranked, weights = combine(members, method, silence_counts=True)
    assert ranked[0].text == ("7" if method == "longest" else "")
    assert all(weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_tracklet_in_which_no_frame_reads_is_not_readable(method):
    ranked, weights = combine([frame(("", 0.9)), frame(("", 0.7)), frame(("5", 0.1))], method, floor=0.2)
    assert shares(ranked) == pytest.approx({"": 1.6 / 1.7})
    assert weights == [0, 0, 0]


def test_only_readings_under_the_floor_give_nothing_with_no_confidence():
    ranked, _ = combine([frame(("5", 0.1)), frame(("6", 0.15))], floor=0.2)
    assert ranked[0].text == ""
    assert exp(ranked[0].log_prob) < 1e-6


def test_ties_go_to_the_smaller_text_in_any_order_of_frames():
    for order in permutations([frame(("9", 0.5)), frame(("10", 0.5)), frame(("1", 0.5))]):
        assert texts(combine(order, floor=0.2)[0]) == ["1", "10", "9"]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_voters_changes_nothing(method):
    voters = [spelt("23", 0.9, 0.3), spelt("28", 0.5, 0.7), spelt("3", 0.35), spelt("238", 0.9, 0.7, 0.4)]
    first, weights = combine(voters, method)
    for order in permutations(range(4)):
        ranked, given = combine([voters[number] for number in order], method)
        assert ranked == first
        assert given == [weights[number] for number in order]


def test_a_reading_keeps_the_character_probabilities_of_its_surest_frame():
    sure = Hypothesis("23", log(0.72), (log(0.8), log(0.9), 0.0))
    doubtful = Hypothesis("23", log(0.3), (log(0.5), log(0.6), 0.0))
    for frames in ([[sure], [doubtful]], [[doubtful], [sure]]):
        assert combine(frames, floor=0.2)[0][0].token_log_probs == sure.token_log_probs


@pytest.mark.parametrize("method", METHODS)
def test_a_single_voter_has_nobody_to_outvote(method):
    only = frame(("7", 0.15), ("1", 0.1))
    ranked, weights = combine([only], method, floor=0.2)
    assert ranked == only
    assert ballots([only], weights) == [Ballot(0, "7", pytest.approx(0.15), 0.0)]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "rover"])
def test_frames_that_together_say_too_little_leave_a_tracklet_unread(method):
    frames = [frame(("23", 0.6)), frame(("23", 0.3)), frame(("8", 0.25))]
    plain, weights = combine(frames, method)
    enough = 2.0 if method == "majority" else 0.9
    assert combine(frames, method, least=enough - 1e-9) == (plain, weights)
    ranked, given = combine(frames, method, least=1.5 * enough)
    assert texts(ranked) == ["", *texts(plain)] and given == weights
    assert shares(ranked) == pytest.approx({"": 1 / 3, **{text: share / 1.5 for text, share in shares(plain).items()}})


def test_the_public_recipe_reads_a_number_from_a_sum_of_one_on():
    # Products of characters, under 0.2 dropped, summed a number, a prior for its length, -1 up to a sum of 1.
    recipe = VoteRules("sum", 0.2, length_priors=PRIORS, least=1.0)
    two, one = frame(("23", 0.9)), frame(("2", 0.9))
    assert texts(vote([two, two, one, one], recipe)[0])[0] == "23"  # 1.8 × .61
    assert texts(vote([two, one, one], recipe)[0])[0] == ""  # .9 × .61 and 1.8 × .39
    assert texts(vote([two], recipe)[0]) == ["", "23"]


def test_nothing_readable_is_not_doubted_for_weighing_little():
    assert combine([frame(("", 0.4), ("7", 0.3))], least=2.0)[0][0] == frame(("", 0.4))[0]
    members = [frame(("", 0.5)), frame(("", 0.3)), frame(("7", 0.6))]
    assert combine(members, silence_counts=True, least=9.0) == combine(members, silence_counts=True)


def test_an_aligned_vote_has_no_sum_to_hold_against_a_least():
    with pytest.raises(ValidationError, match="take another vote, or abstain_below"):
        DecodeSettings(vote="rover", vote_least=1.0)


@pytest.mark.parametrize("priors", [{}, {1: 0.0}, {1: -0.1, 2: 1.0}, {-1: 0.5}, {1: float("inf")}, {1: float("nan")}])
def test_priors_that_allow_nothing_or_are_none_are_refused(priors):
    with pytest.raises(ValidationError, match=r"such as \{1: 0.39, 2: 0.61\}"):
        DecodeSettings(length_priors=priors)
    assert DecodeSettings.model_validate_json('{"length_priors": {"1": 0.39, "2": 0.61}}').length_priors == PRIORS
