"""What a Serve config says of the replicas of a bundle, and the curves of its recognizers measured under just that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glyphrun.bundle import read_manifest
from glyphrun.device import available_cores
from glyphrun.ensemble_bundle import load_reader
from glyphrun_serve.batch_curve import measure_curve
from glyphrun_serve.config_check import ServeConfig, read_config
from glyphrun_serve.graph import GATEWAY, Part, parts_of
from glyphrun_serve.tuning import Bounds, Curve, TuningError

CONFIGS = Path(__file__).parents[1] / "configs"

Items = Sequence[Sequence[bytes]]


@dataclass(frozen=True)
class Base:
    """The config that is tuned, for a bundle whose graph it fits."""

    path: Path
    bundle: Path
    config: ServeConfig
    parts: Mapping[str, Part]

    @property
    def recognizers(self) -> list[Part]:
        """One that answers alone, or the members that vote."""
        return list(self.parts.values())

    def granted(self, part: Part) -> tuple[float, float]:
        """Cores and cards of each replica."""
        own = self.config.options.get(part.deployment, {}).get("ray_actor_options")
        if own is None:
            return self.config.settings.resources.each(len(self.parts))
        return own.get("num_cpus", 1), own.get("num_gpus", 0)  # Serve's own defaults

    def threads(self, part: Part) -> int:
        """Threads that a replica computes with."""
        return max(1, int(self.granted(part)[0]))

    def bounds(self) -> Bounds:
        """How many replicas there may be: as the base says, else up to as many as this machine has room for."""
        cpus, gpus = (sum(one) for one in zip(*map(self.granted, self.recognizers), strict=True))
        room = torch.cuda.device_count() / gpus if gpus else available_cores() / cpus if cpus else 1
        ranges = {}
        for part in self.recognizers:
            few, many = self._range(part.deployment, self.config.settings.replicas)
            ranges[part.deployment] = (few, many if many is not None else max(few, int(room)))
        few, many = self._range(GATEWAY, 1)
        return Bounds(self.config.settings.limits.answer_s, ranges, gateways=few if many is None else many)

    def _range(self, deployment: str, otherwise: int) -> tuple[int, int | None]:
        """The fewest and the most replicas of a deployment; None where the base does not let it scale."""
        options = self.config.options.get(deployment, {})
        scaling, number = options.get("autoscaling_config"), options.get("num_replicas")
        if isinstance(scaling, dict):
            return scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)
        return (number if isinstance(number, int) else otherwise), None


def read_base(path: Path, bundle: Path, device: torch.device, frames: int) -> Base:
    """A config that is right for a bundle, and for the device and the tracklets that it is to be measured with.

    Raises ConfigError, TuningError.
    """
    base = Base(path, bundle, read_config(path, bundle), parts_of(bundle, read_manifest(bundle)))
    limit = base.config.settings.limits.frames
    if frames > limit:
        raise TuningError(f"{path} has tracklets of more than {limit} frames refused: give --frames {limit} or fewer")
    for part in base.recognizers:
        _, gpus = base.granted(part)
        if bool(gpus) != (device.type == "cuda"):
            raise TuningError(
                f"{path} gives each replica of {part.deployment} {gpus:g} GPUs, and it would be measured on {device.type}, "
                "which says nothing about that: "
                + (
                    "run it where such a GPU is, or choose a --base without them"
                    if gpus
                    else "choose a --base with GPUs, or --device cpu"
                )
            )
    return base


def measure(
    base: Base,
    device: torch.device,
    sizes: Sequence[int],
    slo_ms: float,
    items: Items,
    advance: Callable[[str, int], None] | None = None,
) -> dict[str, Curve]:
    """The curve of each recognizer, one after the other, on as many cores as a replica has; advance is told what is done."""
    processors = tuple(dict.fromkeys(part.processor for part in base.recognizers))
    before = torch.get_num_threads()
    curves: dict[str, Curve] = {}
    try:
        for part in base.recognizers:
            # Before the reader's thread begins, for a thread keeps the number that it found.
            torch.set_num_threads(base.threads(part))
            curves[part.deployment] = asyncio.run(
                measure_curve(
                    load_reader(part.folder, device, base.config.settings.precision),
                    processors,
                    items,
                    sizes,
                    slo_ms,
                    place=processors.index(part.processor),
                    explain=len(base.parts) == 1,  # members that vote are not asked for what each frame says
                    advance=_named(advance, part.deployment),
                )
            )
    finally:
        torch.set_num_threads(before)
    return curves


def _named(advance: Callable[[str, int], None] | None, name: str) -> Callable[[int], None] | None:
    return (lambda size: advance(name, size)) if advance else None
