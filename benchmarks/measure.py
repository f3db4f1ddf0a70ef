"""How the benchmarks measure: ways that take turns, readings that must be the same, and what the hardware could do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import TypeVar, get_args

import torch

from glyphrun.device import Precision
from glyphrun.prediction import Prediction

UNMEASURED = 2  # rounds that fill caches and compile
CONFIDENCE_APART = 1e-4  # by how much float32 rounds differently in a batch
Item = TypeVar("Item")


def command_line(
    description: str | None, *, repeats: int | None = None, precision: bool = False
) -> argparse.ArgumentParser:
    """A parser with --seed and, where a script times or computes in several precisions, --repeats and --precision."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="of each way (default: %(default)s)")
    if precision:
        parser.add_argument("--precision", choices=get_args(Precision), help="default: the hardware's best")
    return parser


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy moment of the machine falls on all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-UNMEASURED, repeats):
        for name, way in ways.items():
            _wait_for_gpu()
            started = perf_counter()
            way()
            _wait_for_gpu()
            if number >= 0:
                times[name].append(perf_counter() - started)
    return {name: median(seconds) for name, seconds in times.items()}


def together_and_alone(
    read: Callable[[Sequence[Item]], list[Prediction]], items: Sequence[Item]
) -> dict[str, Callable[[], list[Prediction]]]:
    """The two ways "batch", all items in one call, and "single", a call for each of them."""
    return {"batch": lambda: read(items), "single": lambda: [read([item])[0] for item in items]}


def share_read_alike(name: str, batch: Sequence[Prediction], single: Sequence[Prediction], precision: str) -> float:
    """The share of items whose text is the same in a batch and alone.

    Ends the program unless in float32 all are, with the same confidences but for rounding. name: of what reads them.
    """
    pairs = list(zip(batch, single, strict=True))
    different = [
        (number, one, other)
        for number, (one, other) in enumerate(pairs)
        if one.text != other.text or abs(one.confidence - other.confidence) > CONFIDENCE_APART
    ]
    if precision == "float32" and different:
        number, one, other = different[0]
        raise SystemExit(
            f"{name}: {len(different)} of {len(pairs)} items read differently in a batch; item {number} is "
            f"{one.text!r} ({one.confidence:.4f}) there and {other.text!r} ({other.confidence:.4f}) alone"
        )
    return sum(one.text == other.text for one, other in pairs) / len(pairs)


def matmul_rate(device: torch.device, precision: Precision) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    size, dtype = 8192 if device.type == "cuda" else 2048, getattr(torch, precision)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            _wait_for_gpu()
            started = perf_counter()
            left @ right
            _wait_for_gpu()
            best = min(best, perf_counter() - started)
    return 2 * size**3 / best


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
