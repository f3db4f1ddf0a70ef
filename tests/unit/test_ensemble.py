from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from glyphrun.bundle import BundleError, load_engine, read_manifest, save_bundle
from glyphrun.correction import load_corrector
from glyphrun.decoding.rescore import correct_all
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings
from glyphrun.decoding.vote import combine
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.ensemble_bundle import load_reader, save_ensemble
from glyphrun.images import ImageProcessor, encode_image, stack_frames
from glyphrun.members import EnsembleError, EnsembleSettings
from glyphrun.models.average import average
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.line_ctc import LineCTC, LineCTCSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Recognizer, frames_of
from glyphrun.prediction import Prediction
from glyphrun.recipe import processor_for
from glyphrun.registry import Registry
from glyphrun.text import DIGITS, Codec

CPU = torch.device("cpu")
ENCODER = EncoderSettings(image=(16, 24), patch=(8, 8), width=16, depth=1, heads=2)
WIDE = EncoderSettings(image=(16, 40), patch=(8, 8), width=16, depth=1, heads=2)


def recognizer(kind: str, seed: int, fusion: str = "attention") -> Recognizer:
    torch.manual_seed(seed)
    made: Recognizer
    if kind == "line-ctc":
        made = LineCTC(
            LineCTCSettings(height=16, max_width=64, stem=(8, 8, 16), width=16, depth=1, heads=2), Codec(DIGITS, 4)
        )
    elif kind == "query-digits":
        made = QueryDigits(QueryDigitsSettings(encoder=WIDE, decoder_heads=2, fusion=fusion))
    else:
        made = PARSeq(PARSeqSettings(encoder=ENCODER, decoder_heads=2, fusion=fusion), 10, 2)
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        for name, parameter in made.named_parameters():
            if "queries" in name or "length_query" in name:
                parameter.mul_(30)
            if "head" in name and name.endswith("weight"):
                parameter.mul_(5)
            if "cross_attn.out_proj.weight" in name:
                parameter.mul_(6)
    return made


def engine_of(kind: str, seed: int, fusion: str = "attention", **settings: object) -> Engine:
    made = recognizer(kind, seed, fusion)
    return Engine(
        made,
        Codec(DIGITS, 4 if kind == "line-ctc" else 2),
        processor_for(made.settings),
        DecodeSettings.model_validate({"vote_floor": 0.0, "search": "beam", "width": 3, **settings}),
        device=CPU,
        precision="float32",
        provenance={"seed": str(seed)},
    )


def different_kinds() -> dict[str, Engine]:
    return {"one": engine_of("parseq", 1), "two": engine_of("query-digits", 2), "line": engine_of("line-ctc", 3)}


@pytest.fixture(scope="module")
def items() -> list[list[bytes]]:
    rng = np.random.default_rng(0)
    return [
        [encode_image(rng.integers(0, 40 * (1 + number % 6), (20, 30, 3), np.uint8)) for _ in range(1 + number % 4)]
        for number in range(12)
    ]


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def fail(*_: object) -> None:
    raise RuntimeError("out of tune")


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


def test_an_engine_alone_has_no_members(items):
    assert engine_of("parseq", 1).read(items[:1])[0].members == ()


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
        name: Says(text, probability).give(engine_of("query-digits", 2))
        for name, text, probability in (("a", "", 0.6), ("b", "", 0.7), ("c", "7", 0.9))
    }
    assert Ensemble(members, EnsembleSettings(vote="majority")).read([[picture]])[0].text == ""
    assert Ensemble(members, EnsembleSettings(vote="confidence", weights={"c": 2.0})).read([[picture]])[0].text == "7"
    decode = DecodeSettings(vote_floor=0.65, abstain_below=0.6)
    floored = Ensemble(members, EnsembleSettings(vote="confidence"), decode).read([[picture]])[0]
    assert (floored.text, floored.abstained) == ("7", True)  # .9 of 1.6
    assert [ballot.weight for ballot in floored.members] == pytest.approx([0.0, 0.7, 0.9])


def test_items_are_prepared_once_for_each_processor(items):
    same = Ensemble({"a": engine_of("parseq", 1), "b": engine_of("parseq", 2)})
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
    members = {"a": engine_of("parseq", 1), "b": engine_of("parseq", 2)}
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
    alone = engine_of(kind, 5, fusion, **settings)
    twins = {"a": engine_of(kind, 5, fusion), "b": engine_of(kind, 5, fusion)}
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
    members = [recognizer(kind, seed, "none").eval() for seed in (5, 6)]
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
    members = [recognizer("parseq", seed, "none").eval() for seed in (5, 6)]
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
    members = [recognizer("parseq", seed) for seed in (5, 6)]
    both = average(members).eval()
    frames, mask = torch.rand(2, 3, 3, 16, 24), torch.tensor([[True, True, False], [True, True, True]])
    memory = both.encode(frames, mask)
    some = frames_of(memory, [4, 1])
    assert [len(part.frame_tokens) for part in (some, *some.members)] == [2, 2, 2]
    for part, whole in zip(some.members, memory.members, strict=True):
        torch.testing.assert_close(part.frame_tokens, whole.frame_tokens[[4, 1]])


def test_a_member_of_an_average_that_fails_is_left_out_too(items):
    members = {name: engine_of("parseq", seed) for name, seed in (("a", 5), ("b", 6), ("c", 7))}
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
        average_of(a=engine_of("parseq", 1), b=engine_of("line-ctc", 2))
    with pytest.raises(ValueError, match="different image processors"):
        average_of(a=engine_of("parseq", 1), b=engine_of("query-digits", 2))
    with pytest.raises(ValueError, match=r"all frames together.*every frame alone; let them vote"):
        average_of(a=engine_of("parseq", 1), b=engine_of("parseq", 2, "none"))
    ranking, generating = engine_of("query-digits", 2), engine_of("parseq", 1)
    ranking.processor = generating.processor
    with pytest.raises(ValueError, match=r"member 0 emits .* member 1 ranks its answers"):
        average_of(a=generating, b=ranking)
    with pytest.raises(ValueError, match="a weight above 0 for each"):
        average([recognizer("parseq", 1)], [0.0])


def test_members_in_half_precision_are_averaged_without_a_copy(items):
    engines = {}
    for name, seed in (("a", 5), ("b", 6)):
        made = recognizer("parseq", seed)
        processor = processor_for(made.settings)
        engines[name] = Engine(made, Codec(DIGITS, 2), processor, device=CPU, precision="bfloat16")
    ensemble = Ensemble(engines, EnsembleSettings(vote="average"))
    assert len(ensemble.read(items)) == len(items)
    weights = {weight.data_ptr() for engine in engines.values() for weight in engine.recognizer.parameters()}
    assert {weight.data_ptr() for weight in ensemble._joint.recognizer.parameters()} == weights


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("members")
    paths = {}
    for name, engine in {**different_kinds(), "again": engine_of("parseq", 9)}.items():
        paths[name] = folder / name
        save_bundle(
            folder / name,
            name=name,
            recognizer=engine.recognizer,
            codec=engine.codec,
            processor=engine.processor,
            decode=engine.settings,
            metrics={},
            provenance={"seed": "1"},
        )
    return paths


def saved(folder: Path, members: dict[str, Path], vote: str = "mbr", **settings: object) -> Path:
    save_ensemble(
        folder,
        name="committee",
        members=members,
        settings=EnsembleSettings.model_validate({"vote": vote, **settings}),
        decode=DecodeSettings(vote_floor=0.0),
        metrics={"test": {"n": 4, "exact": 0.5, "exact_ci": [0.1, 0.9], "cer": 0.3}},
        provenance={"dataset": "none"},
    )
    return folder


@pytest.mark.parametrize("vote", ["confidence", "average"])
def test_an_ensemble_that_was_saved_and_loaded_reads_the_same(vote, bundles, tmp_path, items):
    names = ("one", "again") if vote == "average" else ("one", "two", "line")
    members = {name: bundles[name] for name in names}
    folder = saved(tmp_path / "e", members, vote, weights={"one": 2.0})
    loaded = load_reader(folder, CPU, "float32")
    engines = {name: load_engine(path, CPU, "float32") for name, path in members.items()}
    expected = Ensemble(engines, EnsembleSettings(vote=vote, weights={"one": 2.0})).read(items)
    read = loaded.read(items)
    assert texts(read) == texts(expected)
    assert [one.confidence for one in read] == pytest.approx([one.confidence for one in expected], abs=1e-6)
    assert read[0].provenance == {"name": "committee", "version": "0", "dataset": "none"}
    assert [ballot.member for ballot in read[0].members] == list(names)


def test_a_bundle_of_a_recognizer_loads_as_its_engine(bundles):
    assert isinstance(load_reader(bundles["one"], CPU, "float32"), Engine)


def test_members_are_whole_bundles_and_the_manifest_says_what_they_are(bundles, tmp_path):
    folder = saved(tmp_path / "e", {name: bundles[name] for name in ("one", "two", "line")})
    manifest = read_manifest(folder)
    assert manifest.recognizer == {
        "kind": "ensemble",
        "members": {"one": "parseq", "two": "query-digits", "line": "line-ctc"},
    }
    assert manifest.codec == {"charset": DIGITS, "max_length": 4}
    assert manifest.processor == ImageProcessor(height=16, width=24)
    assert "An ensemble of one (parseq), two (query-digits), line (line-ctc). Vote: mbr." in (
        folder / "MODEL_CARD.md"
    ).read_text(encoding="utf-8")
    for name in ("one", "two", "line"):
        copied = sorted(path.name for path in (folder / "members" / name).iterdir())
        assert copied == sorted(path.name for path in bundles[name].iterdir())
        assert isinstance(load_engine(folder / "members" / name, CPU, "float32"), Engine)
    with pytest.raises(BundleError, match="is an ensemble and has no one recognizer"):
        load_engine(folder)


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json", "SHA256SUMS"])
def test_one_changed_byte_in_a_member_is_refused_with_the_files_name(file, bundles, tmp_path):
    folder = saved(tmp_path / "e", {name: bundles[name] for name in ("one", "two")})
    path = folder / "members" / "two" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=rf"members/two/{file} was changed"):
        load_reader(folder)


def test_missing_and_unlisted_files_of_members_are_refused(bundles, tmp_path):
    folder = saved(tmp_path / "e", {name: bundles[name] for name in ("one", "two")})
    extra = folder / "members" / "one" / "extra.pkl"
    extra.write_bytes(b"x")
    with pytest.raises(BundleError, match=r"members/one/extra\.pkl is not listed"):
        load_reader(folder)
    extra.unlink()
    shutil.rmtree(folder / "members" / "two")
    with pytest.raises(BundleError, match=r"members/two/.* is missing"):
        load_reader(folder)


def test_what_cannot_be_an_ensemble_leaves_nothing_behind(bundles, tmp_path):
    pair = {name: bundles[name] for name in ("one", "two")}
    folder = saved(tmp_path / "e", pair)
    with pytest.raises(BundleError, match="exists already"):
        saved(folder, pair)
    with pytest.raises(BundleError, match="is an ensemble itself"):
        saved(tmp_path / "nested", {"a": folder})
    with pytest.raises(BundleError, match="cannot be a member's name"):
        saved(tmp_path / "named", {"../a": bundles["one"]})
    with pytest.raises(BundleError, match="cannot be averaged"):
        saved(tmp_path / "mixed", pair, "average")
    with pytest.raises(ValueError, match="quorum of 3 cannot be met"):
        saved(tmp_path / "few", pair, quorum=3)
    with pytest.raises(BundleError, match="is no bundle"):
        saved(tmp_path / "absent", {"a": tmp_path / "nowhere"})
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_registry_keeps_ensembles_as_it_keeps_recognizers(bundles, tmp_path, items):
    folder = saved(tmp_path / "e", {name: bundles[name] for name in ("one", "two")})
    registry = Registry(tmp_path / "registry")
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert [registry.promote(folder, "committee", at=noon).version for _ in range(2)] == [1, 2]
    path = registry.resolve("committee")
    assert read_manifest(path).version == 2
    assert texts(load_reader(path, CPU, "float32").read(items)) == texts(
        load_reader(folder, CPU, "float32").read(items)
    )
    assert load_engine(path / "members" / "one", CPU, "float32").provenance["name"] == "one"
    assert json.loads((path / "manifest.json").read_text(encoding="utf-8"))["name"] == "committee"


@pytest.fixture(scope="module")
def word_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "numbers.tsv"
    path.write_text("".join(f"{number}\t{10_000 if number == 31 else 1}\n" for number in range(30, 60)))
    return path


@pytest.mark.parametrize("vote", ["confidence", "average"])
def test_the_answer_of_an_ensemble_is_corrected_after_the_vote(vote, bundles, word_list, tmp_path, items):
    correction = CorrectionSettings(lexicon=word_list.name, lexicon_weight=3.0)
    decode = DecodeSettings(vote_floor=0.0, correction=correction, search="beam", width=3)
    members = {name: bundles[name] for name in ("one", "again")}
    settings = EnsembleSettings(vote=vote)
    save_ensemble(
        tmp_path / "e",
        name="corrected",
        members=members,
        settings=settings,
        decode=decode,
        metrics={},
        provenance={},
        files=word_list.parent,
    )
    assert (tmp_path / "e" / "numbers.tsv").read_bytes() == word_list.read_bytes()
    engines = {name: load_engine(path, CPU, "float32") for name, path in members.items()}
    plain = Ensemble(engines, settings, decode.model_copy(update={"correction": None, "n_best": 64})).read(items)
    corrected = load_reader(tmp_path / "e", CPU, "float32").read(items)
    corrector = load_corrector(word_list.parent, correction)
    if vote == "confidence":
        by_hand = correct_all([prediction.n_best for prediction in plain], corrector)
        assert texts(corrected) == [ranked[0].text for ranked in by_hand]
    assert texts(corrected) != texts(plain)
    assert all(len(prediction.members) == 2 for prediction in corrected)


def test_a_vote_has_no_beam_for_a_language_model(bundles, word_list):
    engines = {name: load_engine(bundles[name], CPU, "float32") for name in ("one", "two")}
    shallow = CorrectionSettings(language_model="lm.arpa", lm_fusion="shallow")
    decode = DecodeSettings(search="beam", width=3, correction=shallow)
    with pytest.raises(ValueError, match="no beam for lm_fusion: shallow"):
        Ensemble(engines, EnsembleSettings(), decode)


def test_a_blank_picture_warms_an_ensemble_up_as_it_does_an_engine(bundles, tmp_path):
    folder = saved(tmp_path / "e", {name: bundles[name] for name in ("one", "again")}, "majority")
    reader = load_reader(folder, CPU, "float32")
    blank = [reader.processor(np.zeros((reader.processor.height, reader.processor.width, 3), np.uint8))] * 2
    assert len(reader.read_prepared([stack_frames(blank)] * 3, explain=True)) == 3
