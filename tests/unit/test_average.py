"""Members whose probabilities are averaged read as one."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from committee import fail, member, member_recognizer, texts, tracklets
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.members import EnsembleError, EnsembleSettings
from glyphrun.models.average import average
from glyphrun.models.recognizer import Recognizer, frames_of
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items() -> list[list[bytes]]:
    return tracklets()


AVERAGED = [
    ("parseq", "attention", {"search": "greedy", "width": 1}),
    ("parseq", "attention", {"search": "greedy", "width": 1, "refine_iters": 1}),
    ("parseq", "none", {"search": "non-autoregressive", "width": 1}),
    ("parseq", "concatenate", {"windows": 3, "window_frames": 2}),
    ("parseq", "attention", {"windows": 3, "window_frames": 2, "early_exit": 0.9}),
    ("query-digits", "attention", {}),
    ("query-digits", "none", {}),
    ("line-ctc", "none", {"n_best": 2}),
]


@pytest.mark.parametrize(("kind", "fusion", "settings"), AVERAGED)
def test_a_recognizer_averaged_with_itself_reads_as_alone(kind, fusion, settings, items):
    alone = member(kind, 5, fusion, **settings)
    twins = {"a": member(kind, 5, fusion), "b": member(kind, 5, fusion)}
    ensemble = Ensemble(twins, EnsembleSettings(vote="average", weights={"b": 3.0}), alone.settings)
    for one, other in zip(alone.read(items, explain=True), ensemble.read(items, explain=True), strict=True):
        assert [found.text for found in one.n_best] == [found.text for found in other.n_best]
        assert [found.log_prob for found in one.n_best] == pytest.approx(
            [found.log_prob for found in other.n_best], abs=1e-4
        )
        assert [step for found in one.n_best for step in found.token_log_probs] == pytest.approx(
            [step for found in other.n_best for step in found.token_log_probs], abs=1e-3
        )
        assert [(ballot.frame, ballot.frames, ballot.text) for ballot in one.votes] == [
            (ballot.frame, ballot.frames, ballot.text) for ballot in other.votes
        ]
        assert [(ballot.status, ballot.weight) for ballot in other.members] == [("averaged", 1.0), ("averaged", 3.0)]


def encoded(kind: str, members: list[Recognizer], items: list[list[bytes]]) -> list[object]:
    processor = processor_for(members[0].settings)
    engine = Engine(average(members, [1.0, 3.0]), Codec(DIGITS, 4), processor, device=CPU, precision="float32")
    stacks = [engine.prepare(frames[:1], name="x") for frames in items]
    pixels = processor.normalise(torch.from_numpy(np.stack([stack.pixels for stack in stacks])))
    mask = torch.ones(len(stacks), 1, dtype=torch.bool)
    return [pixels, mask]


@pytest.mark.parametrize("kind", ["parseq", "query-digits", "line-ctc"])
@torch.inference_mode()
def test_the_average_of_log_probabilities_is_one_distribution(kind, items):
    """By hand: a quarter of one member's and three quarters of the other's, normed; every reading has its own."""
    members = [member_recognizer(kind, seed, "none").eval() for seed in (5, 6)]
    both = average(members, [1.0, 3.0]).eval()
    pixels, mask = encoded(kind, members, items[:3])
    memory, (one, other) = both.encode(pixels, mask), [member.encode(pixels, mask) for member in members]
    if kind == "query-digits":
        rankings = [member.rank(one if number == 0 else other, 111) for number, member in enumerate(members)]
        for joint, first, second in zip(both.rank(memory, 111), *rankings, strict=True):
            apart = [{found.tokens: found.log_prob for found in ranking} for ranking in (first, second)]
            means = {tokens: 0.25 * apart[0][tokens] + 0.75 * apart[1][tokens] for tokens in apart[0]}
            norm = log(sum(map(exp, means.values())))
            assert len(joint) == 111
            assert [found.log_prob for found in joint] == pytest.approx(
                sorted((mean - norm for mean in means.values()), reverse=True), abs=1e-4
            )
            assert sum(exp(found.log_prob) for found in joint) == pytest.approx(1)
            assert all(sum(found.token_log_probs) == pytest.approx(found.log_prob, abs=1e-4) for found in joint)
            assert joint[0].log_prob == pytest.approx(means[joint[0].tokens] - norm, abs=1e-4)
        assert [found[0] for found in both.rank(memory, 1)] == [found[0] for found in both.rank(memory, 111)]
        return
    if kind == "line-ctc":
        (joint, lengths), (first, _), (second, _) = (
            both.emissions(memory),
            members[0].emissions(one),
            members[1].emissions(other),
        )
        assert lengths.tolist() == [6, 6, 6]
    else:
        begin = torch.full((3,), 11)
        (joint, _), (first, _), (second, _) = (
            reader.step(reader.start(known, 1), begin)
            for reader, known in ((both, memory), (members[0], one), (members[1], other))
        )
    mixed = (0.25 * first + 0.75 * second).exp()
    torch.testing.assert_close(joint.exp(), mixed / mixed.sum(-1, keepdim=True))


@torch.inference_mode()
def test_a_wide_beam_over_an_average_finds_its_most_probable_reading(items):
    members = [member_recognizer("parseq", seed, "none").eval() for seed in (5, 6)]
    both = average(members).eval()
    memory = both.encode(*encoded("parseq", members, items[:4]))
    state, begin = both.start(memory, 1), torch.full((4,), 11)
    first, state = both.step(state, begin)  # (4, 11): nothing or a digit
    best = first[:, 0]
    for digit in range(1, 11):
        second, after = both.step(state, torch.full((4,), digit))
        best = torch.maximum(best, first[:, digit] + second[:, 0])
        for other in range(1, 11):
            last, _ = both.step(after, torch.full((4,), other))
            best = torch.maximum(best, first[:, digit] + second[:, other] + last[:, 0])
    found = search(both, memory, DecodeSettings(search="beam", width=64, n_best=1))
    assert [readings[0].log_prob for readings in found] == pytest.approx(best.tolist(), abs=1e-4)


@torch.inference_mode()
def test_frames_of_an_average_are_those_of_all_its_members(items):
    members = [member_recognizer("parseq", seed) for seed in (5, 6)]
    both = average(members).eval()
    frames, mask = torch.rand(2, 3, 3, 16, 24), torch.tensor([[True, True, False], [True, True, True]])
    memory = both.encode(frames, mask)
    some = frames_of(memory, [4, 1])
    assert [len(part.frame_tokens) for part in (some, *some.members)] == [2, 2, 2]
    for part, whole in zip(some.members, memory.members, strict=True):
        torch.testing.assert_close(part.frame_tokens, whole.frame_tokens[[4, 1]])


def test_a_member_of_an_average_that_fails_is_left_out_too(items):
    members = {name: member("parseq", seed) for name, seed in (("a", 5), ("b", 6), ("c", 7))}
    pair = {name: members[name] for name in ("a", "c")}
    settings = EnsembleSettings(vote="average")
    expected = Ensemble(pair, settings).read(items)
    members["b"].recognizer.step = fail
    read = Ensemble(members, settings).read(items)
    assert texts(read) == texts(expected)
    assert [ballot.status for ballot in read[0].members] == ["averaged", "failed: out of tune", "averaged"]
    assert [prediction.confidence for prediction in read] == pytest.approx(
        [prediction.confidence for prediction in expected], abs=1e-5
    )
    with pytest.raises(EnsembleError, match="2 of the 3 members that must answer did: b failed: out of tune"):
        Ensemble(members, EnsembleSettings(vote="average", quorum=3)).read(items)


def test_what_cannot_be_averaged_is_refused_with_the_reason():
    def average_of(**members: Engine) -> None:
        Ensemble(members, EnsembleSettings(vote="average"))

    with pytest.raises(ValueError, match="a and b have different codecs, so they cannot be averaged: let them vote"):
        average_of(a=member("parseq", 1), b=member("line-ctc", 2))
    with pytest.raises(ValueError, match="different image processors"):
        average_of(a=member("parseq", 1), b=member("query-digits", 2))
    with pytest.raises(ValueError, match=r"all frames together.*every frame alone; let them vote"):
        average_of(a=member("parseq", 1), b=member("parseq", 2, "none"))
    ranking, generating = member("query-digits", 2), member("parseq", 1)
    ranking.processor = generating.processor
    with pytest.raises(ValueError, match=r"a emits .* b ranks its answers"):
        average_of(a=generating, b=ranking)
    with pytest.raises(ValueError, match="a weight above 0 for each"):
        average([member_recognizer("parseq", 1)], [0.0])


def test_members_in_half_precision_are_averaged_without_a_copy(items):
    engines = {}
    for name, seed in (("a", 5), ("b", 6)):
        made = member_recognizer("parseq", seed)
        processor = processor_for(made.settings)
        engines[name] = Engine(made, Codec(DIGITS, 2), processor, device=CPU, precision="bfloat16")
    ensemble = Ensemble(engines, EnsembleSettings(vote="average"))
    assert len(ensemble.read(items)) == len(items)
    weights = {weight.data_ptr() for engine in engines.values() for weight in engine.recognizer.parameters()}
    assert {weight.data_ptr() for weight in ensemble._joint.recognizer.parameters()} == weights
