from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np
import pytest
import torch

from glyphrun.data.simulate import SimulatorSettings, simulate_tracklet
from glyphrun.decoding.early_exit import is_decided, is_enough, posterior, read_in_rounds
from glyphrun.decoding.vote import Hypothesis, VoteRules, vote
from glyphrun.decoding.windows import window_rows
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.legibility import legibility
from glyphrun.models.average import average
from glyphrun.prediction import Prediction
from stretched import engine_for, recognizer

METHODS = ("sum", "majority", "confidence", "longest", "rover", "mbr")
PRIORS = {1: 0.39, 2: 0.61}
TEXTS = np.array(["7", "1", "17", "71", "77", "171"])


def reading(*texts: tuple[str, float]) -> list[Hypothesis]:
    return [Hypothesis(text, log(probability), (log(probability),)) for text, probability in texts]


def window(rng: np.random.Generator, truth: str, sure: float) -> list[Hypothesis]:
    """One window's n-best: the truth or another text, sometimes nothing, some of the probability left unsaid."""
    first = truth if rng.random() < sure else str(rng.choice(TEXTS))
    if rng.random() < 0.1:
        first = ""
    others = [str(text) for text in rng.permutation(TEXTS) if text != first][: rng.integers(0, 3)]
    shares = np.sort(rng.dirichlet(np.ones(len(others) + 2) * rng.choice([0.05, 0.5])))[::-1]
    found = []
    for text, share in zip([first, *others], shares, strict=False):
        share = max(float(share), 1e-9)
        steps = rng.dirichlet(np.ones(len(text) + 1)) * log(share)  # characters and the end
        found.append(Hypothesis(text, float(steps.sum()), tuple(steps.tolist()), tuple(text)))
    return found


def tracklets(count: int, seed: int) -> Iterator[list[list[Hypothesis]]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        truth, sure = str(rng.choice(TEXTS)), rng.choice([0.3, 0.8, 1.0])
        yield [window(rng, truth, sure) for _ in range(rng.integers(2, 13))]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_decided_reads_as_all_windows_do(method):
    sooner = 0
    for number, windows in enumerate(tracklets(1200, seed=5)):
        priors = (None, PRIORS, {1: 0.5, 2: 1.5})[number % 3]
        least = 0.0 if method == "rover" else (0.0, 0.0, 0.0, 1.0)[number % 4]
        rules = VoteRules(method, (0.0, 0.2)[number % 2], length_priors=priors, least=least)
        count = next(count for count in range(1, 13) if is_decided(windows[:count], rules, len(windows) - count))
        assert vote(windows[:count], rules)[0][0].text == vote(windows, rules)[0][0].text
        sooner += count < len(windows)
    assert sooner == 0 if method == "longest" else sooner > 150


@pytest.mark.parametrize("method", ["sum", "majority", "confidence"])
def test_what_is_not_decided_could_still_change(method):
    undecided = 0
    for windows in tracklets(250, seed=6):
        rules, left = VoteRules(method), len(windows) - 1
        read = windows[:1]
        while left and not is_decided(read, rules, left):
            answer = vote(read, rules)[0][0].text
            rivals = [*TEXTS, "99"]
            worst = [
                vote([*read, *[[Hypothesis(rival, 0.0, (0.0,))]] * left], rules)[0][0].text
                for rival in rivals
                if rival != answer
            ]
            # The margin for rounding is all that lies between.
            if any(text != answer for text in worst):
                undecided += 1
            else:
                assert all(not voter[0].text for voter in read) or is_decided(read, rules, left - 1)
            read, left = windows[: len(read) + 1], left - 1
    assert undecided > 200


def test_a_lead_that_all_other_windows_together_cannot_make_up_is_decided():
    rules = VoteRules("sum")
    lead = [reading(("23", 0.9), ("28", 0.1))] * 4
    assert is_decided(lead, rules, 3)  # 3.6 against 0.4 and 3 to come
    assert not is_decided(lead, rules, 4)
    assert is_decided([reading(("7", 0.9))] * 2, VoteRules("sum", length_priors={1: 0.9, 2: 0.5}), 1)
    assert not is_decided([reading(("7", 0.9))] * 2, VoteRules("sum", length_priors={1: 0.5, 2: 0.9}), 1)
    majority = VoteRules("majority")
    assert is_decided([reading(("23", 0.3))] * 3, majority, 2)
    assert not is_decided([reading(("23", 0.3))] * 3, majority, 3)  # a tie would go by confidence


def test_nothing_is_decided_while_nothing_is_read():
    for method in METHODS:
        assert not is_decided([reading(("", 0.99))] * 9, VoteRules(method), 1)
        assert not is_decided([reading(("5", 0.1))] * 9, VoteRules(method, 0.2), 1)
        assert is_decided([reading(("", 0.99))], VoteRules(method), 0)


def test_the_posterior_is_what_windows_that_are_heard_give_to_the_answer_with_half_a_window_against_it():
    rules = VoteRules("sum", 0.2)
    read = [reading(("23", 0.9)), reading(("28", 0.6), ("23", 0.3)), reading(("", 0.99)), reading(("7", 0.1))]
    assert posterior(read, rules) == pytest.approx((0.9 + 0.3) / 2.5)
    assert posterior(read[:1], rules) == pytest.approx(0.9 / 1.5)
    assert posterior(read[2:], rules) == 0
    assert is_enough(0.48, rules, read, 5) and not is_enough(0.49, rules, read, 5)
    assert posterior([reading(("7", 1.0))] * 3, rules) == pytest.approx(6 / 7)


def test_each_round_reads_the_most_legible_window_left_of_every_item_that_goes_on():
    items = [[[0, 1], [1, 2], [2, 3]], [[4]], [[5], [6], [7]]]
    scores = [1.0, 1.0, 5.0, 0.0, 3.0, 2.0, 2.0, 9.0]
    rounds: list[list[list[int]]] = []

    def read(windows: list[list[int]]) -> list[list[Hypothesis]]:
        rounds.append(windows)
        return [reading((str(window[0]), 0.5)) for window in windows]

    found = read_in_rounds(items, scores, read, lambda read, left: any(one[0].text == "6" for one in read))
    assert rounds == [[[1, 2], [4], [7]], [[2, 3], [5]], [[0, 1], [6]]]
    assert [list(windows) for windows in found] == [[0, 1, 2], [0], [0, 1, 2]]
    assert [one[0].text for one in found[0].values()] == ["0", "1", "2"]
    found = read_in_rounds(items, scores, read, lambda read, left: left < 3)
    assert [list(windows) for windows in found] == [[1], [0], [2]]


def test_blurred_covered_and_empty_frames_look_less_legible():
    rng = np.random.default_rng(3)
    glyphs = np.zeros((2, 28, 28), np.uint8)
    glyphs[0, 4:24, 6:22], glyphs[0, 8:20, 10:18] = 255, 0
    glyphs[1, 4:24, 11:17] = 255
    processor = ImageProcessor(height=40, width=40)
    better = []
    for seed in range(20):
        seen = simulate_tracklet("01", glyphs, SimulatorSettings(frames=(16, 16)), np.random.default_rng(seed))
        pixels = torch.from_numpy(np.stack([processor(frame).pixels for frame in seen.frames]))
        looks, legible = legibility(pixels), torch.tensor(seen.legible)
        if bool(legible.all()):
            continue
        better.append(float((looks[legible][:, None] > looks[~legible]).float().mean()))
    assert np.mean(better) > 0.95
    noise = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 24), np.uint8))
    wide = torch.full((2, 3, 20, 40), 255, dtype=torch.uint8)
    wide[:, :, :16, :24] = noise
    sizes = torch.tensor([[16, 24], [16, 24]])
    assert legibility(wide, sizes).tolist() == pytest.approx(legibility(noise).tolist())  # padding is not looked at


def engine_of(kind: str, fusion: str, **settings: object) -> Engine:
    if kind == "both":
        read_by = average([recognizer("parseq", fusion, seed=seed) for seed in (4, 5)])
    else:
        read_by = recognizer(kind, fusion)
    return engine_for(read_by, **{"vote_floor": 0.1, **settings})


def pictures(seed: int) -> list[list[bytes]]:
    """Tracklets of 1 to 24 frames, more or less blurred."""
    rng = np.random.default_rng(seed)
    items = []
    for count in (24, 1, 13, 24, 6, 2, 17, 24):
        frames = [rng.integers(0, 40 + 215 * (frame % 3 == 0), (16, 24, 3), np.uint8) for frame in range(count)]
        items.append([encode_image(frame) for frame in frames])
    return items


def answers(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


WINDOWED = [
    ("parseq", "attention", {"windows": 12, "window_frames": 2}),
    ("query-digits", "mean", {"windows": 6, "window_frames": 5}),
    ("parseq", "concatenate", {"windows": 5, "window_frames": 8}),
    ("both", "attention", {"windows": 8, "window_frames": 3}),
    ("query-digits", "none", {}),
    ("parseq", "none", {}),
]


@pytest.mark.parametrize(("kind", "fusion", "settings"), WINDOWED)
def test_an_engine_that_stops_when_it_is_decided_reads_as_one_that_reads_everything(kind, fusion, settings):
    items = [item for seed in range(3) for item in pictures(seed)]
    whole = engine_of(kind, fusion, **settings).read(items)
    early = engine_of(kind, fusion, early_exit="decided", **settings).read(items)
    assert len(set(answers(whole))) > 1
    assert answers(early) == answers(whole)
    assert all(len(one.votes) <= len(other.votes) for one, other in zip(early, whole, strict=True))
    votes = [{(vote.frame, vote.frames, vote.text) for vote in prediction.votes} for prediction in whole]
    assert all(
        {(vote.frame, vote.frames, vote.text) for vote in one.votes} <= all_votes
        for one, all_votes in zip(early, votes, strict=True)
    )


@pytest.mark.parametrize(("kind", "fusion", "settings"), WINDOWED)
def test_a_threshold_that_is_never_reached_reads_everything_alike(kind, fusion, settings):
    items = pictures(1)
    whole = engine_of(kind, fusion, **settings).read(items)
    early = engine_of(kind, fusion, early_exit=1.0, **settings).read(items)
    assert answers(early) == answers(whole)
    for one, other in zip(early, whole, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert [vote.frame for vote in one.votes] == [vote.frame for vote in other.votes]


def test_frames_of_windows_that_are_not_read_are_not_encoded_and_no_frame_is_encoded_twice():
    items = pictures(2)
    encoded: list[int] = []

    def frames_encoded(**settings: object) -> int:
        engine = engine_of("parseq", "attention", windows=6, window_frames=6, vote_floor=0.0, **settings)
        encoded.clear()
        engine.recognizer.encoder.register_forward_hook(lambda _, given, __: encoded.append(len(given[0])))
        read = engine.read(items)
        assert sum(map(len, (prediction.votes for prediction in read))) >= len(items)
        return sum(encoded)

    everything = frames_encoded()
    assert frames_encoded(early_exit=1.0) == everything  # windows overlap, frames are shared
    assert frames_encoded(early_exit=1e-6) == sum(min(len(item), 6) for item in items)


def test_the_window_that_is_read_first_is_the_one_that_looks_best():
    rng = np.random.default_rng(0)
    dull, sharp = (rng.integers(0, most, (16, 24, 3), np.uint8) for most in (30, 255))
    frames = [encode_image(sharp if number in (7, 8) else dull) for number in range(12)]
    engine = engine_of("parseq", "attention", windows=6, window_frames=2, early_exit=1e-6, vote_floor=0.0)
    votes = engine.read([frames])[0].votes
    starts = [window[0] for window in window_rows(12, 6, 2)]
    assert [vote.frame for vote in votes] == [6] and 6 in starts and 8 in starts


def test_the_company_in_a_batch_does_not_change_what_is_read():
    items = pictures(3)
    engine = engine_of("query-digits", "attention", windows=12, window_frames=2, early_exit=0.6)
    together, alone = engine.read(items), [engine.read([item])[0] for item in items]
    assert answers(together) == answers(alone)
    assert [len(one.votes) for one in together] == [len(one.votes) for one in alone]
    assert len({len(one.votes) for one in together}) > 2


def test_early_exit_needs_something_to_exit_from():
    with pytest.raises(ValueError, match="set windows and window_frames"):
        engine_of("parseq", "attention", early_exit="decided")


def test_what_votes_must_add_up_to_needs_votes():
    with pytest.raises(ValueError, match="no votes add up to vote_least: set windows and window_frames"):
        engine_of("parseq", "attention", vote_least=1.0)
    unread = engine_of("parseq", "none", vote_least=50.0, vote_floor=0.0).read(pictures(seed=3))
    assert {prediction.text for prediction in unread} == {""}
