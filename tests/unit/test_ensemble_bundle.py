"""An ensemble is a bundle of whole bundles, and reads and is kept as one."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from committee import different_kinds, member, texts, tracklets
from glyphrun.bundle import BundleError, load_engine, read_manifest, save_bundle
from glyphrun.correction import load_corrector
from glyphrun.decoding.rescore import correct_all
from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.ensemble_bundle import load_reader, save_ensemble
from glyphrun.images import ImageProcessor, stack_frames
from glyphrun.members import EnsembleSettings
from glyphrun.registry import Registry
from glyphrun.text import DIGITS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items() -> list[list[bytes]]:
    return tracklets()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("members")
    paths = {}
    for name, engine in {**different_kinds(), "again": member("parseq", 9)}.items():
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
