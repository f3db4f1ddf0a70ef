"""What a promotion is measured against: the latency budget of a place to serve at, read from its Serve config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glyphrun.device import Precision


class TargetError(ValueError):
    """A target file that cannot be used; the message names the key."""


class LatencyBudget(BaseModel):
    """How long items that arrive together may take, from encoded frames to text.

    percentile: of a hundred batches, how many must end within latency_ms. frames: of each item; those that it has if null.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: float = Field(gt=0)
    percentile: float = Field(95, gt=0, le=100)
    frames: int | None = Field(None, ge=1)


class Target(BaseModel):
    """A latency budget with what it is measured under: items a batch, cores, precision; gpu: whether it is a GPU's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    budget: LatencyBudget
    batch: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    precision: Precision | None = None
    gpu: bool = False


def read_target(path: Path) -> Target:
    """The target that a Serve config describes by the arguments of its application. Raises TargetError."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TargetError(f"{path} cannot be read: {error}") from None
    try:
        (application,) = declared["applications"]
        arguments: dict[str, Any] = application["args"]
        budget, batch = arguments["budget"], arguments["batching"]["most"]
    except (KeyError, TypeError, ValueError):
        raise TargetError(
            f"{path} is no target: it needs one application whose args have budget: {{latency_ms: …}} and "
            "batching: {most: …}, as serve/configs/t4.yaml has them"
        ) from None
    try:
        return Target(
            name=path.name,
            budget=LatencyBudget.model_validate(budget),
            batch=batch,
            threads=max(1, int(arguments.get("cpus", 1))),
            precision=arguments.get("precision"),
            gpu=bool(arguments.get("gpus", 0)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise TargetError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
