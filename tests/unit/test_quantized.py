"""A smaller bundle is scored and timed beside the one that it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from commands import said
from glyphrun.bundle import SUMS, BundleError, load_engine, read_manifest
from glyphrun.data.batches import load_split
from glyphrun.data.sample import dataset_hash
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.models.quantize import stored
from glyphrun.quantized import Measured, losses, quantize_bundle, shown
from int8_recognizers import CPU, recognizer, save


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundles") / "parent", recognizer("query-digits-nano"))


def test_a_quantized_bundle_is_scored_and_timed_next_to_its_parent(untrained, small_dataset, tmp_path):
    out = tmp_path / "made" / "int8"
    comparison = quantize_bundle(untrained, out, "int8", small_dataset)
    assert [path.name for path in out.parent.iterdir()] == ["int8"]
    before, after = comparison.parent, comparison.quantized
    assert after.size == (out / "weights.safetensors").stat().st_size
    assert comparison.size_ratio == after.size / before.size < 0.5
    engine = load_engine(out, CPU)
    scores = evaluate(engine, load_split(small_dataset, "val", engine.processor))
    assert (after.exact, after.cer) == (scores.exact.value, scores.cer.value)
    assert comparison.cer_lost == after.cer - before.cer
    assert comparison.times_as_fast == after.images_per_s / before.images_per_s > 0
    assert before.ms > 0 and after.ms > 0
    assert after.computed_in == before.computed_in and "so small" in comparison.remarks[0]
    manifest, parent = read_manifest(out), read_manifest(untrained)
    assert manifest.metrics["val"]["cer"] == after.cer and manifest.metrics["val"]["n"] == 20
    assert manifest.provenance == {
        **parent.provenance,
        "parent": hashlib.sha256((untrained / SUMS).read_bytes()).hexdigest(),
    }
    assert "int8" in (out / "MODEL_CARD.md").read_text()
    assert json.loads(json.dumps(comparison.to_json()))["size_ratio"] == comparison.size_ratio
    assert shown(comparison).row_count == 6


def test_what_speaks_against_a_method_is_said():
    parent = Measured(4, "float32", ms=1.0, images_per_s=100.0, exact=0.9, cer=0.05)
    assert losses(parent, Measured(1, "int8", ms=0.5, images_per_s=180.0, exact=0.89, cer=0.055)) == ()
    worse, slower = losses(parent, Measured(1, "int8", ms=2.0, images_per_s=80.0, exact=0.85, cer=0.07))
    assert "rose by 2.0 points" in worse and "more slowly than its parent" in slower
    assert losses(parent, Measured(1, "float32", ms=1.0, images_per_s=99.0, exact=0.9, cer=0.05)) == ()


def test_without_a_data_set_only_the_size_is_known(untrained, tmp_path):
    comparison = quantize_bundle(untrained, tmp_path / "half", "float16")
    assert 0.49 < comparison.size_ratio < 0.53
    assert (comparison.quantized.ms, comparison.cer_lost, comparison.times_as_fast) == (None, None, None)
    assert comparison.remarks[0] == "without a data set nothing was scored or timed"
    assert read_manifest(tmp_path / "half").metrics == {}


def test_a_runs_bundle_is_scored_on_the_runs_data_without_being_told(untrained, small_dataset, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(untrained, run / "bundle")
    (run / "dataset.json").write_text(json.dumps({"hash": dataset_hash(small_dataset), "path": str(small_dataset)}))
    told = json.loads(said("quantize", str(run / "bundle"), str(tmp_path / "half"), "--fp16", "--json"))
    assert told["method"] == "float16" and told["cer_lost"] is not None and told["quantized"]["ms"] > 0
    assert read_manifest(tmp_path / "half").metrics["val"]["n"] == 20


def test_what_cannot_be_quantized_is_refused_in_a_sentence_and_leaves_nothing(untrained, small_dataset, tmp_path):
    once = tmp_path / "once"
    quantize_bundle(untrained, once, "int8")
    with pytest.raises(BundleError, match="once is stored in int8 already: quantize the one it was made from"):
        quantize_bundle(once, tmp_path / "twice", "bfloat16")
    with pytest.raises(BundleError, match="once exists already"):
        quantize_bundle(untrained, once, "int8")
    with pytest.raises(ValueError, match="float32 is what bundles are trained in"):
        quantize_bundle(untrained, tmp_path / "same", "float32")
    with pytest.raises(ValueError, match="does not exist"):
        quantize_bundle(untrained, tmp_path / "unscored", "int8", tmp_path / "no-data")
    large = recognizer("parseq-nano")
    with torch.no_grad():
        large.pos_queries[0, 0, 0] = 1e5
    parent = save(tmp_path / "large", large)
    with pytest.raises(ValueError, match=r"pos_queries has values that float16 cannot hold .*: choose bfloat16"):
        quantize_bundle(parent, tmp_path / "too-large", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "once"]
    assert stored(large, "int8")["pos_queries"].dtype == torch.float32
