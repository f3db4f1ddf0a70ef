"""A tuned config is one that Serve takes: the base, with what was measured in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from commands import refusal, said
from glyphrun.ensembled import make_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun_serve.config_check import ConfigError, read_config
from glyphrun_serve.tuned_config import Measured, measured_under, remarks, write_tuned
from glyphrun_serve.tuning import BatchPoint, Curve, Tuning, TuningError, tune
from glyphrun_serve.tuning_base import CONFIGS, Base, read_base
from tiny_bundles import save_tiny_bundle

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "one", "query-digits-nano")


@pytest.fixture(scope="module")
def both(bundle: Path) -> Path:
    make_ensemble({"one": bundle, "other": bundle}, bundle.parent / "both", EnsembleSettings())
    return bundle.parent / "both"


def flat(batch: int, read_ms: float = 10.0, decode_ms: float = 0.5) -> BatchPoint:
    """Batches that take as long at every size."""
    both_ms = read_ms + decode_ms
    return BatchPoint(
        batch=batch,
        repeats=100,
        decode_ms=decode_ms,
        read_ms=read_ms,
        read_p99_ms=read_ms,
        answer_ms=both_ms,
        answer_p99_ms=both_ms,
    )


def curves_of(base: Base, **point: float) -> dict[str, Curve]:
    points = tuple(flat(size, **point) for size in (1, 2, 4, 8))
    return {part.deployment: Curve(item_bytes=38_400, points=points) for part in base.recognizers}


def tuned(base: Base, out: Path, device: torch.device = CPU) -> tuple[Tuning, Path]:
    curves = curves_of(base)
    tuning = tune(curves, 100.0, base.bounds())
    return tuning, write_tuned(out, base, measured_under(base, "shirts", CPU, 100.0, "noise", 8, curves), tuning)


def test_the_config_of_a_processor_gets_what_it_did_not_say(bundle: Path, tmp_path: Path) -> None:
    tuning, curve = tuned(read_base(CONFIGS / "local.yaml", bundle, CPU, 8), tmp_path / "made" / "shirts.yaml")
    config, before = read_config(tmp_path / "made" / "shirts.yaml"), read_config(CONFIGS / "local.yaml")
    assert config.settings.bundle == bundle
    assert (config.settings.batching.most, config.settings.batching.wait_s) == (8, 0.001)
    found, options = tuning.recognizers["recognizer"], config.options["recognizer"]
    assert options["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": found.max_replicas,
        "target_ongoing_requests": 8,
    }
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (16, found.max_queued_requests)
    assert (config.settings.limits, config.options["gateway"]) == (before.settings.limits, before.options["gateway"])
    assert "# Tuned for shirts on " in (tmp_path / "made" / "shirts.yaml").read_text("utf-8")
    measured = Measured.model_validate_json(curve.read_text("utf-8"))
    assert curve.name == "shirts.curve.json" and measured.threads == {"recognizer": 1}
    assert [point.batch for point in measured.curves["recognizer"].points] == [1, 2, 4, 8]
    assert sorted(path.name for path in curve.parent.iterdir()) == ["shirts.curve.json", "shirts.yaml"]


def test_the_config_of_a_card_keeps_what_it_says_of_scaling_and_of_the_card(bundle: Path, tmp_path: Path) -> None:
    base = read_base(CONFIGS / "t4.yaml", bundle, CUDA, 8)
    tuning, _ = tuned(base, tmp_path / "t4.yaml")
    before = read_config(CONFIGS / "t4.yaml").options["recognizer"]
    after = read_config(tmp_path / "t4.yaml").options["recognizer"]
    assert after["autoscaling_config"] == {**before["autoscaling_config"], "target_ongoing_requests": 8}
    assert after["ray_actor_options"] == before["ray_actor_options"]
    assert any("share a card" in one for one in remarks(base, curves_of(base), tuning))


def test_every_member_that_votes_is_tuned(both: Path, tmp_path: Path) -> None:
    base = read_base(CONFIGS / "local.yaml", both, CPU, 8)
    tuning, _ = tuned(base, tmp_path / "both.yaml")
    config = read_config(tmp_path / "both.yaml")
    assert set(config.options) == {"gateway", "recognizer-one", "recognizer-other"} == {"gateway", *tuning.recognizers}
    assert any("less than a core each" in one for one in remarks(base, curves_of(base), tuning))
    with pytest.raises(ConfigError, match="no deployment 'recognizer'; it has .*recognizer-one"):
        read_base(CONFIGS / "t4.yaml", both, CUDA, 8)


def test_a_number_of_replicas_becomes_a_range_from_there(bundle: Path, tmp_path: Path) -> None:
    declared = yaml.safe_load((CONFIGS / "local.yaml").read_text("utf-8"))
    declared["applications"][0]["deployments"] = [{"name": "recognizer", "num_replicas": 64}]
    path = tmp_path / "fixed.yaml"
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    tuned(read_base(path, bundle, CPU, 8), tmp_path / "range.yaml")
    options = read_config(tmp_path / "range.yaml").options["recognizer"]
    assert "num_replicas" not in options
    assert (options["autoscaling_config"]["min_replicas"], options["autoscaling_config"]["max_replicas"]) == (64, 64)


def test_a_slow_decoder_and_a_short_queue_are_told(bundle: Path) -> None:
    base = read_base(CONFIGS / "local.yaml", bundle, CPU, 8)
    slow = curves_of(base, read_ms=2000.0, decode_ms=60_000.0 / 8)
    (one,) = [
        said
        for said in remarks(base, slow, tune(curves_of(base), 100.0, base.bounds(), peak=2000))
        if "decodes" in said
    ]
    assert one.startswith("a gateway decodes 1 items/s and these replicas read 3200: `preprocess: true`")
    queue = remarks(base, slow, tune(slow, 20_000.0, base.bounds()))
    assert any("requests of more than 56 items are answered with 503: lower limits.items, 64" in said for said in queue)


@pytest.mark.parametrize(
    ("config", "device", "frames", "said"),
    [
        ("t4.yaml", CPU, 8, r"t4.yaml gives each replica of recognizer 0.5 GPUs, and it would be measured on cpu"),
        ("local.yaml", CUDA, 8, "local.yaml gives each replica of recognizer 0 GPUs, and it would be measured on cuda"),
        ("local.yaml", CPU, 65, "tracklets of more than 64 frames refused: give --frames 64"),
    ],
)
def test_what_would_measure_something_else_is_refused(
    bundle: Path, config: str, device: torch.device, frames: int, said: str
) -> None:
    with pytest.raises(TuningError, match=said):
        read_base(CONFIGS / config, bundle, device, frames)


def test_the_base_itself_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text((CONFIGS / "local.yaml").read_text("utf-8"), encoding="utf-8")
    with pytest.raises(TuningError, match="base.yaml is the base itself"):
        tuned(read_base(path, bundle, CPU, 8), path)
    assert path.read_text("utf-8") == (CONFIGS / "local.yaml").read_text("utf-8")


def test_the_verb_measures_a_bundle_and_writes_what_can_be_served(bundle: Path, tmp_path: Path) -> None:
    measure = ("tune-serving", str(bundle), "--device", "cpu", "--frames", "2", "--largest", "2")
    out = tmp_path / "one.yaml"
    printed = said(*measure, "--slo-ms", "5000", "--out", str(out))
    config, curve = read_config(out), json.loads((tmp_path / "one.curve.json").read_text("utf-8"))
    assert config.settings.batching.most in (1, 2)
    assert f"batches of {config.settings.batching.most}: 99 % of items" in printed
    points = curve["curves"]["recognizer"]["points"]
    assert [point["batch"] for point in points] == [1, 2] and points[0]["repeats"] == 100
    assert curve["frames"] == 2 and curve["curves"]["recognizer"]["item_bytes"] % 2 == 0
    page = (tmp_path / "one.curve.html").read_text("utf-8")
    assert f"Batches of {config.settings.batching.most}</h2>" in page
    refused = refusal(*measure, "--slo-ms", "0.01", "--out", str(tmp_path / "none.yaml"))
    assert "no batch size answers 99 % of items within 0.01 ms: the best that was measured is" in refused
    assert not (tmp_path / "none.yaml").exists()
