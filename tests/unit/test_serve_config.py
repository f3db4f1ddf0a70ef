"""A Serve config says what it does: every key is one that has an effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glyphrun.ensembled import make_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun_serve.config_check import ConfigError, check_config, read_config
from tiny_bundles import save_tiny_bundle

CONFIGS = Path(__file__).parents[2] / "serve" / "configs"
DEPLOYED = Path(__file__).parents[2] / "deploy" / "serve.yaml"


@pytest.mark.parametrize("path", [*sorted(CONFIGS.glob("*.yaml")), DEPLOYED], ids=lambda path: path.name)
def test_every_config_of_the_repository_is_right_to_the_last_key(path: Path) -> None:
    config = read_config(path)
    assert config.port == 8000
    for name, options in config.options.items():
        if "autoscaling_config" in options:
            assert options["autoscaling_config"]["max_replicas"] > 1, name


def test_what_each_config_is_for_stands_in_it() -> None:
    assert read_config(CONFIGS / "local.yaml").settings.gpus == 0
    t4 = read_config(CONFIGS / "t4.yaml")
    recognizer = t4.options["recognizer"]
    assert recognizer["ray_actor_options"] == {
        "num_cpus": t4.settings.cpus,
        "num_gpus": t4.settings.gpus,
        "accelerator_type": "T4",
    }
    assert 0 < t4.settings.gpus < 1
    assert recognizer["autoscaling_config"]["min_replicas"] == 1
    assert recognizer["max_ongoing_requests"] == 2 * t4.settings.batching.most
    assert recognizer["max_queued_requests"] > 0
    assert recognizer["max_surge_percent"] == 100
    ensemble = read_config(CONFIGS / "ensemble.yaml")
    shares = [options["ray_actor_options"]["num_gpus"] for name, options in ensemble.options.items() if "-" in name]
    assert len(shares) == 3 and sum(shares) == ensemble.settings.gpus


def application(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]


def recognizer(config: dict[str, Any]) -> dict[str, Any]:
    return application(config)["deployments"][-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda config: config.update(proxy_locatoin="EveryNode"),
            "proxy_locatoin .* nearest known key is proxy_location",
        ),
        (lambda config: config["http_options"].update(hots="x"), r"http_options\.hots .* nearest known key is host"),
        (
            lambda config: recognizer(config).update(max_ongoing_request=3),
            r"applications\[0\]\.deployments\[2\]\.max_ongoing_request .* key is max_ongoing_requests",
        ),
        (
            lambda config: recognizer(config)["autoscaling_config"].update(max_replica=3),
            r"deployments\[2\]\.autoscaling_config\.max_replica .* nearest known key is max_replicas",
        ),
        (
            lambda config: recognizer(config)["ray_actor_options"].update(num_gpu=1),
            r"ray_actor_options\.num_gpu .* nearest known key is num_gpus",
        ),
        (
            lambda config: application(config)["args"].update(log_samples={"folder": "runs/unsure", "belw": 0.5}),
            r"args\.log_samples\.belw .* nearest known key is below",
        ),
        (lambda config: application(config)["args"].update(batchng={}), r"args\.batchng .* key is batching"),
        (
            lambda config: application(config)["args"]["limits"].update(answers=3),
            r"args\.limits\.answers .* nearest known key is answer_s",
        ),
        (
            lambda config: application(config)["args"]["limits"].update(answer_s=-1),
            r"args\.limits\.answer_s: Input should be greater than 0",
        ),
        (
            lambda config: recognizer(config)["autoscaling_config"].update(max_replicas=0),
            r"deployments\[2\]\.autoscaling_config.* greater than 0",
        ),
        (lambda config: recognizer(config).update(num_replicas=2), "num_replicas is not allowed"),
        (
            lambda config: recognizer(config).update(max_ongoing_requests=5),
            "5 calls at once can never fill a batch of 16",
        ),
        (lambda config: recognizer(config).update(name="recogniser"), "no deployment 'recogniser'; it has gateway"),
        (
            lambda config: config["http_options"].pop("request_timeout_s"),
            "request_timeout_s is None and must be over args.limits.answer_s, 30",
        ),
        (lambda config: config.pop("applications"), "no Serve config"),
        (lambda config: config.update(applications=["x"]), r"applications\[0\]: Input should be"),
    ],
)
def test_a_key_or_value_without_effect_is_refused_by_file_and_path(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    declared = yaml.safe_load((CONFIGS / "t4.yaml").read_text(encoding="utf-8"))
    change(declared)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{path}.*{said}"):
        check_config(path)


def test_a_config_for_an_ensemble_names_the_members_of_the_bundle_that_it_serves(tmp_path: Path) -> None:
    one = save_tiny_bundle(tmp_path / "one", "query-digits-nano")
    make_ensemble({"one": one, "other": one}, tmp_path / "both", EnsembleSettings())
    with pytest.raises(ConfigError, match="no deployment 'recognizer-two'; it has .*recognizer-one, recognizer-other"):
        read_config(CONFIGS / "ensemble.yaml", tmp_path / "both")
    local = read_config(CONFIGS / "local.yaml", tmp_path / "both")
    assert local.settings.bundle == tmp_path / "both"
