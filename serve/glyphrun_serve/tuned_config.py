"""The Serve config that a tuning makes of its base, checked and written with the curves beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict

from glyphrun.device import device_name
from glyphrun_serve.config_check import check_config
from glyphrun_serve.tuning import Curve, Tuning, TuningError
from glyphrun_serve.tuning_base import Base


class Measured(BaseModel):
    """The curves of a bundle's recognizers by deployment, with what they were measured under."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    base: str
    slo_ms: float
    device: str
    items: str
    frames: int
    threads: dict[str, int]
    curves: dict[str, Curve]


def remarks(base: Base, curves: Mapping[str, Curve], tuning: Tuning) -> list[str]:
    """What a person should know who serves with it, and the config cannot say."""
    said = []
    settings = base.config.settings
    slowest_decoding = max(
        point.decode_ms / point.batch
        for curve in curves.values()
        for point in curve.points
        if point.batch == tuning.most
    )
    decoded = 1e3 / slowest_decoding
    read = min(one.max_replicas * one.items_per_s for one in tuning.recognizers.values())
    if not settings.preprocess and decoded < read:
        said.append(
            f"a gateway decodes {decoded:.0f} items/s and these replicas read {read:.0f}: `preprocess: true` has images "
            "decoded by replicas of their own"
        )
    least = min(one.max_queued_requests + one.max_ongoing_requests for one in tuning.recognizers.values())
    if least < settings.limits.items:
        said.append(
            f"requests of more than {least} items are answered with 503: lower limits.items, {settings.limits.items}, to that"
        )
    if any(0 < base.granted(part)[1] < 1 for part in base.recognizers):
        said.append("replicas that share a card slow each other, and this one had it alone: promise with room to spare")
    if any(0 < cpus < 1 and not gpus for cpus, gpus in map(base.granted, base.recognizers)):
        said.append("replicas have less than a core each, and were measured with a whole one: raise cpus in the base")
    return said


def write_tuned(out: Path, base: Base, measured: Measured, tuning: Tuning) -> Path:
    """Write the config, checked key by key, with the curves beside it, whose place is returned. Raises ConfigError."""
    if out.exists() and base.path.exists() and out.samefile(base.path):
        raise TuningError(f"{out} is the base itself, whose comments would be lost: name another file with --out")
    curve = out.with_name(f"{out.stem}.curve.json")
    head = [
        f"Tuned for {measured.bundle} on {measured.device}: tracklets of {measured.frames} frames ({measured.items}),",
        f"base {measured.base}; what was measured is in {curve.name}. HTTP and the hops to a replica come on top.",
        *tuning.told(),
    ]
    declared = tuned(check_config(base.path, base.bundle), base, tuning)
    written = "".join(f"# {line}\n" for line in head) + yaml.safe_dump(declared, sort_keys=False, allow_unicode=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(curve, measured.model_dump_json(indent=1) + "\n", lambda aside: None)
    _write_whole(out, written, lambda aside: check_config(aside, base.bundle))
    return curve


def tuned(declared: Mapping[str, Any], base: Base, tuning: Tuning) -> dict[str, Any]:
    """A config with what was tuned in the place of what it said of that; all else stays."""
    config = deepcopy(dict(declared))
    (application,) = config["applications"]
    application["args"] |= {
        "bundle": str(base.bundle),
        "batching": {"most": tuning.most, "wait_s": tuning.wait_s},
    }
    deployments = application.setdefault("deployments", [])
    known = {one["name"]: one for one in deployments}
    for name, one in tuning.recognizers.items():
        if name not in known:
            known[name] = {"name": name}
            deployments.append(known[name])
        known[name].pop("num_replicas", None)  # Serve takes a number or a range
        scaling = known[name].get("autoscaling_config")
        known[name] |= {
            "autoscaling_config": {
                **(scaling if isinstance(scaling, dict) else {}),
                "min_replicas": one.min_replicas,
                "max_replicas": one.max_replicas,
                "target_ongoing_requests": one.target_ongoing_requests,
            },
            "max_ongoing_requests": one.max_ongoing_requests,
            "max_queued_requests": one.max_queued_requests,
        }
    return config


def measured_under(
    base: Base, name: str, device: torch.device, slo_ms: float, items: str, frames: int, curves: Mapping[str, Curve]
) -> Measured:
    """The curves with what they were measured under; name: of the model, items: where they come from."""
    return Measured(
        bundle=name,
        base=base.path.name,
        slo_ms=slo_ms,
        device=device_name(device),
        items=items,
        frames=frames,
        threads={part.deployment: base.threads(part) for part in base.recognizers},
        curves=dict(curves),
    )


def _write_whole(out: Path, text: str, check: Callable[[Path], object]) -> None:
    aside = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        check(aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
