"""Every kind of recognizer in one sweep, from its declaration to a bundle that reads as it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray.serve
import torch
from rich.console import Console
from safetensors.torch import load_file

from commands import refusal, said
from glyphrun.adapters import merge_into_bundle
from glyphrun.bundle import load_engine, save_bundle
from glyphrun.data.batches import load_split
from glyphrun.data.sample import iterate_samples, read_card
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import read_split
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.progress import show_stages
from glyphrun.recipe import codec_for, processor_for
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.run import claim_run, sweep_to_results
from glyphrun.sweeps.trained import labels, trained_engine
from glyphrun.sweeps.trials import read_record
from glyphrun.text import DIGITS
from glyphrun_serve.app import ServeSettings, build_app
from glyphrun_serve.app import run as serve
from glyphrun_serve.deployments import Batching
from one_slot import one_slot
from tiny_vlm import save_tiny

SMALL = {"encoder": {"width": 32, "heads": 2}, "decoder_heads": 2}


@pytest.fixture(scope="module")
def base(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that others start from."""
    torch.manual_seed(3)
    settings = recognizer_settings("parseq-nano", SMALL)
    codec = codec_for(settings, read_card(small_dataset).charset, ["10"])
    folder = tmp_path_factory.mktemp("base") / "bundle"
    save_bundle(
        folder,
        name="base",
        recognizer=build(settings, codec),
        codec=codec,
        processor=processor_for(settings),
        decode=DecodeSettings(),
        metrics={},
        provenance={},
    )
    return folder


@pytest.fixture(scope="module")
def experiment(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "study",
            "trials": 6,
            "train": {
                "steps": 4,
                "batch_size": 8,
                "evaluate_every": 2,
                "checkpoint_every": 2,
                "snapshot_every": 2,
                "warmup": 1,
            },
            "scheduler": {"grace_steps": 4},
            "budget": {"latency_ms": 10_000, "frames": 2},
            "candidates": [
                {"family": "query digits", "recognizer": "query-digits-nano", "changes": SMALL},
                {
                    "family": "transferred",
                    "recognizer": "parseq-nano",
                    "changes": SMALL,
                    "start": {"weights": str(base), "lora": {"targets": ["vision", "decoder"], "unfrozen": ["head"]}},
                    "space": {"start.lora.rank": {"choice": [2]}},
                },
                {
                    "family": "windows",
                    "recognizer": "parseq-nano",
                    "changes": {**SMALL, "fusion": "mean"},
                    "decode": {"windows": 2, "window_frames": 2},
                },
                {"family": "lines", "recognizer": "line-ctc-nano", "changes": {"width": 32, "depth": 1}},
                {"family": "trocr", "recognizer": "trocr-nano"},
                {
                    "family": "vision-language",
                    "recognizer": "qwen2-vl-2b",
                    "changes": {
                        "source": str(save_tiny(tmp_path_factory.mktemp("hub") / "tiny", "qwen2_vl")),
                        "prompt": "Read.",
                        "max_pixels": 4 * 28 * 28,
                        "min_pixels": 28 * 28,
                    },
                    "start": {"lora": {"rank": 2, "targets": ["decoder"]}},
                },
            ],
        }
    )


@pytest.fixture(scope="module")
def run(local_ray, experiment: Experiment, small_dataset: Path, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    with claim_run(folder, experiment), show_stages(Console(quiet=True)) as stages, one_slot():
        results = sweep_to_results(experiment, small_dataset, folder, stages)
    return folder, results


@pytest.mark.slow
def test_every_kind_is_trained_scored_and_timed(run):
    _, results = run
    assert [(trial["family"], trial["status"], trial["reason"]) for trial in results["trials"]] == [
        (family, "finished", None)
        for family in ("query digits", "transferred", "windows", "lines", "trocr", "vision-language")
    ]
    for trial in results["trials"]:
        assert trial["step"] == 4 and trial["val"]["n"] == 20
        assert trial["latency_ms"]["p50"] > 0 and trial["gflops"] > 0 and trial["parameters"] > 0


@pytest.fixture(scope="module")
def bundles(run, experiment, small_dataset, tmp_path_factory) -> dict[str, tuple[Path, Engine]]:
    """Each trial's bundle by its family, with the engine that it was saved from."""
    saved = {}
    for trial in plan_trials(experiment):
        engine = trained_engine(read_record(run[0], trial), DIGITS, labels(small_dataset))
        folder = tmp_path_factory.mktemp("bundles") / trial.id
        save_bundle(
            folder,
            name=trial.id,
            recognizer=engine.recognizer,
            codec=engine.codec,
            processor=engine.processor,
            decode=engine.settings,
            metrics={},
            provenance={},
        )
        saved[trial.family] = folder, engine
    return saved


@pytest.mark.slow
def test_every_kind_is_saved_into_a_bundle_that_reads_the_same_without_what_it_came_from(
    bundles, experiment, small_dataset
):
    sources = {trial.family: trial.settings.get("source") for trial in plan_trials(experiment)}
    for family, (folder, engine) in bundles.items():
        source = sources[family]
        if source:
            Path(source).rename(f"{source}-away")
        try:
            again = load_engine(folder)
        finally:
            if source:
                Path(f"{source}-away").rename(source)
        arrays = load_split(small_dataset, "val", engine.processor)
        for one, other in zip(read_split(engine, arrays), read_split(again, arrays), strict=True):
            assert one.text == other.text, family
            assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


@pytest.fixture(scope="module")
def served(local_ray, bundles: dict[str, tuple[Path, Engine]]) -> Iterator[dict[str, str]]:
    """Where each family that reads frames alone is served: the first as ever, the others beside it on the same port."""
    settings = {
        family: ServeSettings(bundle=bundles[family][0], precision="float32", batching=Batching(most=2), cpus=0.5)
        for family in ("lines", "trocr", "vision-language")
    }
    with serve(settings["lines"], port=0) as server:
        for family in ("trocr", "vision-language"):
            ray.serve.run(build_app(settings[family]), name=family, route_prefix=f"/{family}")
        yield {family: server.url if family == "lines" else f"{server.url}/{family}" for family in settings}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lines", "trocr", "vision-language"])
def test_what_reads_frames_alone_is_served_as_it_was_measured(bundles, served, small_dataset, family):
    _, engine = bundles[family]
    sample = next(sample for sample in iterate_samples(small_dataset, "test") if len(sample.frames) > 2)
    expected = engine.read([sample.frames])[0]
    upload = [("frames", (f"{number}.jpg", data)) for number, data in enumerate(sample.frames)]
    answer = httpx.post(f"{served[family]}/v1/recognize", files=upload, timeout=60, trust_env=False).json()
    assert answer["text"] == expected.text
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert [vote["text"] for vote in answer["votes"]] == [ballot.text for ballot in expected.votes]


@pytest.mark.slow
def test_transferred_weights_and_adapters_are_kept_beside_their_trial(run, experiment, base, tmp_path):
    folder, _ = run
    planned = {trial.family: trial for trial in plan_trials(experiment)}
    record = read_record(folder, planned["transferred"])
    moved = json.loads((record.folder / "transfer.json").read_text())
    assert {tensor["action"] for tensor in moved} == {"kept"}
    adapter = load_file(record.folder / "adapter" / "adapter.safetensors")
    assert any(name.endswith(".lora_A") for name in adapter) and "head.weight" in adapter
    assert sum(tensor.numel() for tensor in adapter.values()) < 0.6 * sum(
        tensor.numel() for tensor in load_file(base / "weights.safetensors").values()
    )
    merge_into_bundle(base, [record.folder / "adapter"], tmp_path / "merged")
    one, other = load_engine(tmp_path / "merged"), trained_engine(record, DIGITS, ["10"])
    for (name, value), expected in zip(
        one.recognizer.state_dict().items(), other.recognizer.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_adapters_of_a_trials_snapshots_are_averaged_on_what_it_began_with(run, experiment, tmp_path):
    planned = {trial.family: trial for trial in plan_trials(experiment)}
    for family in ("transferred", "vision-language"):
        folder, out = read_record(run[0], planned[family]).folder, tmp_path / family
        adapters = sorted((folder / "adapters").iterdir())
        assert [adapter.name for adapter in adapters] == ["step-000002", "step-000004"]
        said("adapter", "merge", str(folder), *map(str, adapters), "--out", str(out))
        snapshots = [load_engine(folder / "snapshots" / adapter.name) for adapter in adapters]
        one, other = (snapshot.recognizer.state_dict() for snapshot in snapshots)
        for name, value in load_engine(out).recognizer.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, (one[name] + other[name]) / 2, atol=1e-5, rtol=1e-4, msg=name)
    assert "exists already" in refusal("adapter", "merge", str(folder), *map(str, adapters), "--out", str(out))


@pytest.mark.slow
def test_snapshots_are_bundles_of_their_steps_and_the_last_is_what_was_trained(run, experiment, small_dataset):
    for trial in plan_trials(experiment):
        record = read_record(run[0], trial)
        assert sorted(folder.name for folder in (record.folder / "snapshots").iterdir()) == [
            "step-000002",
            "step-000004",
        ]
        if trial.family in ("transferred", "lines"):
            last = load_engine(record.folder / "snapshots" / "step-000004")
            trained = trained_engine(record, DIGITS, labels(small_dataset))
            for one, other in zip(last.recognizer.parameters(), trained.recognizer.parameters(), strict=True):
                torch.testing.assert_close(one, other)
