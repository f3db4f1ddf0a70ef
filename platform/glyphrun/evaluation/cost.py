"""What a recognizer costs: parameters, FLOPs and latency of one tracklet from bytes to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from glyphrun.engine import Engine
from glyphrun.ensemble import Reader


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one item alone, from encoded frames to text: median and 95th percentile."""

    p50: float
    p95: float


def count_parameters(engine: Engine) -> int:
    """Trainable numbers in the recognizer."""
    return sum(parameter.numel() for parameter in engine.recognizer.parameters())


def count_gflops(engine: Engine, frames: int) -> float:
    """10⁹ floating-point operations to read one item of some frames, a multiply-add counted as two."""
    pixels, mask = _blank(engine, frames)
    return _counted(engine, lambda: engine.read_batch(pixels, mask))


def count_encoder_gflops(engine: Engine, frames: int) -> float:
    """The same of the encoder alone, before anything is read; in float32."""
    pixels, mask = _blank(engine, frames)
    normalised, mask = engine.processor.normalise(pixels.to(engine.device)), mask.to(engine.device)
    with torch.inference_mode():
        return _counted(engine, lambda: engine.recognizer.encode(normalised, mask))


def _blank(engine: Engine, frames: int) -> tuple[Tensor, Tensor]:
    shape = (1, frames, 3, engine.processor.height, engine.processor.width)
    return torch.zeros(shape, dtype=torch.uint8), torch.ones(1, frames, dtype=torch.bool)


def _counted(engine: Engine, run: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    trainable = [parameter for parameter in engine.recognizer.parameters() if parameter.requires_grad]
    # The counter follows gradients through modules, and inference has none to follow.
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with counter:
            run()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    return counter.get_total_flops() / 1e9


def measure_latency(
    readers: Sequence[Reader], items: Sequence[Sequence[bytes]], *, repeats: int, threads: int
) -> list[Latency]:
    """Latency of every reader over the items in turn, interleaved so that a slow moment of the machine meets them all."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times: list[list[float]] = [[] for _ in readers]
        for repeat in range(-2, repeats):  # two unmeasured rounds fill caches
            item = items[repeat % len(items)]
            for number, reader in enumerate(readers):
                started = perf_counter()
                reader.read([item])
                if repeat >= 0:
                    times[number].append((perf_counter() - started) * 1e3)
    finally:
        torch.set_num_threads(before)
    return [Latency(*map(float, np.percentile(measured, [50, 95]))) for measured in times]


def measure_batches(
    reader: Reader, items: Sequence[Sequence[bytes]], *, batch: int, repeats: int, seconds: float, threads: int
) -> list[float]:
    """Milliseconds of batches of the items in turn, from encoded frames to text with what each frame says.

    This is what a served replica does with requests that arrive together. At least one in ten of the repeats is measured,
    and no more once some seconds are over.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times: list[float] = []
        until = perf_counter() + seconds
        for repeat in range(-1, repeats):  # an unmeasured batch fills caches
            chosen = [items[(max(repeat, 0) * batch + place) % len(items)] for place in range(batch)]
            started = perf_counter()
            stacks = [reader.prepare(frames, name=f"item {number}") for number, frames in enumerate(chosen)]
            reader.read_prepared(stacks, explain=True)
            if repeat >= 0:
                times.append((perf_counter() - started) * 1e3)
            if len(times) >= max(1, repeats // 10) and perf_counter() > until:
                break
    finally:
        torch.set_num_threads(before)
    return times
