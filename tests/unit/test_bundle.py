"""A bundle is read exactly as it was written, or refused by the name of the file that differs."""

import shutil

import numpy as np
import pytest
import torch

from glyphrun.bundle import BundleError, load_engine, save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.quantized import quantize_bundle
from glyphrun.text import DIGITS, Codec


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(3)
    save_bundle(
        tmp_path / "bundle",
        name="numbers",
        recognizer=build(recognizer_settings("parseq-nano", {"fusion": "concatenate"}), Codec(DIGITS, 2)),
        codec=Codec(DIGITS, 2),
        processor=ImageProcessor(height=40, width=40),
        decode=DecodeSettings(refine_iters=1),
        metrics={"val": {"n": 4, "exact": 0.5, "exact_ci": [0.1, 0.9], "cer": 0.3, "wer": 0.5}},
        provenance={"seed": "3"},
    )
    return tmp_path / "bundle"


def test_a_loaded_bundle_reads_as_the_recognizer_that_was_saved(bundle):
    engine = load_engine(bundle)
    torch.manual_seed(3)
    original = build(recognizer_settings("parseq-nano", {"fusion": "concatenate"}), Codec(DIGITS, 2))
    for name, weight in original.state_dict().items():
        assert torch.equal(weight, engine.recognizer.state_dict()[name]), name
    frame = encode_image(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8))
    assert engine.read([[frame]])[0].text == load_engine(bundle).read([[frame]])[0].text
    assert engine.settings.refine_iters == 1
    assert engine.provenance == {"name": "numbers", "version": "0", "seed": "3"}


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json", "MODEL_CARD.md"])
def test_one_changed_byte_is_refused_with_the_files_name(bundle, file):
    path = bundle / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{file} was changed"):
        load_engine(bundle)


def test_missing_unlisted_and_outside_files_are_refused(bundle):
    (bundle / "extra.pkl").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.pkl is not listed"):
        load_engine(bundle)
    (bundle / "extra.pkl").unlink()
    (bundle / "MODEL_CARD.md").unlink()
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md is missing"):
        load_engine(bundle)
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../../outside\n")
    with pytest.raises(BundleError, match="MODEL_CARD|outside the bundle"):
        load_engine(bundle)


def test_a_folder_that_exists_is_not_overwritten_and_nothing_half_written_stays(bundle, tmp_path):
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(
            bundle,
            name="numbers",
            recognizer=build(recognizer_settings("query-digits-nano"), Codec(DIGITS, 2)),
            codec=Codec(DIGITS, 2),
            processor=ImageProcessor(height=40, width=40),
            decode=DecodeSettings(),
            metrics={},
            provenance={},
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bundle_holds_no_pickle(bundle):
    assert {path.suffix for path in bundle.iterdir()} == {".safetensors", ".json", ".md", ""}


def test_a_bundle_takes_along_what_its_correction_needs(tmp_path, monkeypatch):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "words.tsv").write_text("12\t5\n")
    settings = recognizer_settings("parseq-nano")
    folder = tmp_path / "bundle"
    save_bundle(
        folder,
        name="corrected",
        recognizer=build(settings, Codec(DIGITS, 2)),
        codec=Codec(DIGITS, 2),
        processor=ImageProcessor(height=40, width=40),
        decode=DecodeSettings.model_validate({"correction": {"lexicon": "words.tsv"}}),
        metrics={},
        provenance={},
        files=lists,
    )
    shutil.rmtree(lists)
    engine = load_engine(folder)
    assert (
        "correct"
        in engine.read_prepared([engine.prepare([encode_image(np.zeros((30, 30, 3), np.uint8))], name="x")])[0].timings
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.tsv").write_text("99\t5\n")  # another list of that name, where the command is given
    quantize_bundle(folder, tmp_path / "half", "bfloat16")
    assert (tmp_path / "half" / "words.tsv").read_text() == "12\t5\n"
    (folder / "words.tsv").write_text("13\t5\n")
    with pytest.raises(BundleError, match="words.tsv was changed"):
        load_engine(folder)
