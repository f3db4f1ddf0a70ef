"""Members read apart and vote: what each says counts as it would alone, and who is missing is named."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from threading import Event

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from committee import different_kinds, fail, member, texts, tracklets
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Hypothesis, combine
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.images import encode_image
from glyphrun.members import EnsembleError, EnsembleSettings, Reading, vote_of_members
from glyphrun.prediction import conclude


@pytest.fixture(scope="module")
def items() -> list[list[bytes]]:
    return tracklets()


@pytest.mark.parametrize("vote", ["sum", "majority", "confidence", "longest", "rover", "mbr"])
def test_members_of_different_kinds_vote_with_what_each_reads_alone(vote, items):
    members = different_kinds()
    weights = {"one": 1.0, "two": 2.5, "line": 0.5}
    ensemble = Ensemble(
        members, EnsembleSettings(vote=vote, weights={"two": 2.5, "line": 0.5}), provenance={"name": "e"}
    )
    alone = {name: engine.read(items) for name, engine in members.items()}
    read = ensemble.read(items)
    assert len({tuple(texts(predictions)) for predictions in alone.values()}) == 3
    for number, prediction in enumerate(read):
        said = [alone[name][number] for name in members]
        ranked, given = combine([one.n_best for one in said], vote, weights=list(weights.values()), silence_counts=True)
        assert prediction.text == ranked[0].text
        assert prediction.confidence == pytest.approx(exp(ranked[0].log_prob), abs=1e-4)
        assert [ballot.member for ballot in prediction.members] == ["one", "two", "line"]
        assert [ballot.text for ballot in prediction.members] == [one.text for one in said]
        assert [ballot.confidence for ballot in prediction.members] == pytest.approx(
            [one.confidence for one in said], abs=1e-4
        )
        assert [ballot.weight for ballot in prediction.members] == pytest.approx(given, abs=1e-4)
        assert all(ballot.status == "voted" and ballot.ms > 0 for ballot in prediction.members)
        assert prediction.provenance == {"name": "e"}
    assert set(read[0].timings) == {"decode", "read", "vote"}


def test_the_least_risk_is_found_among_all_that_members_propose_and_not_only_what_each_reads_best():
    def said(best: str) -> Reading:
        n_best = [Hypothesis(text, log(share), (log(share),)) for text, share in ((best, 0.5), ("cot", 0.4))]
        return Reading([conclude(n_best, DecodeSettings(), votes=())], 1.0, "voted")

    readings = {best: said(best) for best in ("cat", "cut", "coat")} | {"absent": Reading(None, None, "late")}
    decode = DecodeSettings(vote_floor=0.0)
    for method, answer in (("mbr", "cot"), ("sum", "cot"), ("majority", "cat")):
        (read,) = vote_of_members(readings, EnsembleSettings(vote=method), decode)
        assert read.text == answer
        assert [ballot.text for ballot in read.members] == ["cat", "cut", "coat", ""]
        assert [ballot.member for ballot in read.members if ballot.status == "voted"] == ["cat", "cut", "coat"]


def test_an_engine_alone_has_no_members(items):
    assert member("parseq", 1).read(items[:1])[0].members == ()


def test_a_member_that_raises_is_left_out_and_named(items):
    members = different_kinds()
    without = Ensemble({name: members[name] for name in ("one", "line")}).read(items)
    members["two"].recognizer.encode = fail
    read = Ensemble(members).read(items)
    assert texts(read) == texts(without)
    for prediction in read:
        assert [ballot.status for ballot in prediction.members] == ["voted", "failed: out of tune", "voted"]
        broken = prediction.members[1]
        assert (broken.text, broken.confidence, broken.weight) == ("", 0.0, 0.0)


class Held:
    """An encoder that waits until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.go, self.encode = Event(), engine.recognizer.encode
        engine.recognizer.encode = self

    def __call__(self, *given: torch.Tensor) -> object:
        assert self.go.wait(60)
        with torch.inference_mode():
            return self.encode(*given)


@pytest.fixture
def held() -> Iterator[tuple[dict[str, Engine], Held]]:
    members = different_kinds()
    encoder = Held(members["two"])
    yield members, encoder
    encoder.go.set()


def test_a_member_that_is_late_is_left_out_and_comes_back(held, items):
    members, encoder = held
    ensemble = Ensemble(members, EnsembleSettings(deadline_ms={"two": 30.0}))
    for prediction in ensemble.read(items):
        assert [ballot.status for ballot in prediction.members] == ["voted", "late", "voted"]
        assert prediction.members[1].ms is None and prediction.members[1].weight == 0
    encoder.go.set()
    patient = Ensemble(members, EnsembleSettings(deadline_ms={"two": 60_000.0, "one": 60_000.0}))
    assert [ballot.status for ballot in patient.read(items)[0].members] == ["voted", "voted", "voted"]
    assert texts(patient.read(items)) == texts(Ensemble(different_kinds()).read(items))


def test_what_comes_after_its_deadline_does_not_count(items):
    ensemble = Ensemble(different_kinds(), EnsembleSettings(deadline_ms={"line": 1e-6}))
    for prediction in ensemble.read(items[:2]):
        assert prediction.members[2].status == "late"
        assert prediction.members[0].status == "voted"


def test_too_few_members_are_an_error_that_says_who_was_missing_and_why(held, items):
    members, _ = held
    members["line"].recognizer.encode = fail
    ensemble = Ensemble(members, EnsembleSettings(deadline_ms={"two": 30.0}, quorum=2))
    with pytest.raises(EnsembleError, match=r"1 of the 2 members .* two late; line failed: out of tune"):
        ensemble.read(items)
    members["one"].recognizer.encode = fail
    with pytest.raises(EnsembleError, match="0 of the 1 members"):
        Ensemble({name: members[name] for name in ("one", "line")}).read(items)


def test_members_that_find_nothing_readable_may_win():
    class Says:
        def __init__(self, text: str, probability: float) -> None:
            self.text, self.probability = text, probability

        def rank(self, memory: object, n: int) -> object:
            tokens = tuple(int(digit) + 1 for digit in self.text)
            return [[type(found)(tokens, log(self.probability), found.token_log_probs) for found in item[:1]]
                    for item in self.ranked(memory, n)]  # fmt: skip

        def give(self, engine: Engine) -> Engine:
            self.ranked, engine.recognizer.rank = engine.recognizer.rank, self.rank
            return engine

    picture = encode_image(np.full((20, 30, 3), 90, np.uint8))
    members = {
        name: Says(text, probability).give(member("query-digits", 2))
        for name, text, probability in (("a", "", 0.6), ("b", "", 0.7), ("c", "7", 0.9))
    }
    assert Ensemble(members, EnsembleSettings(vote="majority")).read([[picture]])[0].text == ""
    assert Ensemble(members, EnsembleSettings(vote="confidence", weights={"c": 2.0})).read([[picture]])[0].text == "7"
    decode = DecodeSettings(vote_floor=0.65, abstain_below=0.6)
    floored = Ensemble(members, EnsembleSettings(vote="confidence"), decode).read([[picture]])[0]
    assert (floored.text, floored.abstained) == ("7", True)  # .9 of 1.6
    assert [ballot.weight for ballot in floored.members] == pytest.approx([0.0, 0.7, 0.9])


def test_items_are_prepared_once_for_each_processor(items):
    same = Ensemble({"a": member("parseq", 1), "b": member("parseq", 2)})
    assert len(same.prepare(items[1], name="x")) == 1
    mixed = Ensemble(different_kinds())
    stacks = mixed.prepare(items[1], name="x")
    assert [stack.shape[1:] for stack in stacks] == [(16, 24), (16, 40), (16, 24)]
    prepared = [mixed.prepare(frames, name="x") for frames in items]
    assert texts(mixed.read_prepared(prepared)) == texts(mixed.read(items))
    # A plain stack will do where there is one processor alone.
    plain = [same.members["a"].prepare(frames, name="x") for frames in items]
    told: list[int] = []
    assert texts(same.read_prepared(plain, progress=told.append)) == texts(same.read(items))
    assert sum(told) == len(items)
    with pytest.raises(ValueError, match="3 image processors and the item is ready for 1"):
        mixed.read_prepared(plain)
    with pytest.raises(ValueError, match="x has no frames"):
        mixed.prepare([], name="x")
    with pytest.raises(ValueError, match="bad.png is not a readable"):
        mixed.read([[b"GIF"]], names=["bad.png"])
    assert mixed.read([]) == []


def test_an_ensemble_has_no_features_of_its_own(items):
    mixed = Ensemble(different_kinds())
    with pytest.raises(ValueError, match="ask one of one, two, line"):
        mixed.embed([mixed.prepare(items[0], name="x")])


def test_settings_that_do_not_fit_the_members_are_refused():
    members = {"a": member("parseq", 1), "b": member("parseq", 2)}
    with pytest.raises(ValueError, match="weights names the member 'c'; there are a, b"):
        Ensemble(members, EnsembleSettings(weights={"c": 1.0}))
    with pytest.raises(ValueError, match="deadline_ms names the member 'c'"):
        Ensemble(members, EnsembleSettings(deadline_ms={"c": 1.0}))
    with pytest.raises(ValueError, match="quorum of 3 cannot be met by 2"):
        Ensemble(members, EnsembleSettings(quorum=3))
    with pytest.raises(ValidationError, match="leave deadline_ms out"):
        EnsembleSettings(vote="average", deadline_ms={"a": 1.0})
    with pytest.raises(ValidationError):
        EnsembleSettings(weights={"a": 0.0})
