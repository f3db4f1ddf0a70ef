"""A batch of tracklets through the engine in one call against a loop of single calls.

    python benchmarks/tracklet_batches.py

Both start from encoded frames and must give the same answers; weights are random, from a fixed seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import torch

from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.prediction import Prediction
from glyphrun.text import DIGITS, Codec

RECOGNIZERS = ("query-digits-nano", "parseq-nano")


def main() -> None:
    """Print tracklets/s of both ways and their ratio, a line for each recognizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracklets", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], help="default: the hardware's best")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    items = tracklets(asked.tracklets, asked.seed)
    for name in RECOGNIZERS:
        torch.manual_seed(asked.seed)
        settings = recognizer_settings(name)
        height, width = settings.encoder.image
        engine = Engine(
            build(settings, Codec(DIGITS, 2)),
            Codec(DIGITS, 2),
            ImageProcessor(height=height, width=width),
            precision=asked.precision,
        )

        def at_once(engine: Engine = engine) -> list[Prediction]:
            return engine.read(items)

        def one_by_one(engine: Engine = engine) -> list[Prediction]:
            return [engine.read([frames])[0] for frames in items]

        together, alone = at_once(), one_by_one()
        if engine.precision == "float32":
            refuse_differences(together, alone)
        equal = sum(one.text == other.text for one, other in zip(together, alone, strict=True)) / len(items)
        times = in_turns({"batch": at_once, "loop": one_by_one}, asked.repeats)
        stages = together[0].timings
        print(
            f"{name}: device {engine.device}, precision {engine.precision}, {len(items)} tracklets of 3 to 8 frames, "
            f"{equal:.1%} of the readings equal"
        )
        print(
            f"{name}: one call {len(items) / times['batch']:.1f} tracklets/s "
            f"({', '.join(f'{stage} {milliseconds:.1f} ms' for stage, milliseconds in stages.items())}), "
            f"loop {len(items) / times['loop']:.1f} tracklets/s"
        )
        print(f"{name}: ratio {times['loop'] / times['batch']:.2f}")


def tracklets(count: int, seed: int) -> list[list[bytes]]:
    """Small crops with 3 to 8 frames each, encoded as a client would send them."""
    rng = np.random.default_rng(seed)
    return [
        [
            encode_image(
                rng.integers(0, 256, (int(rng.integers(28, 56)), int(rng.integers(24, 48)), 3), np.uint8), "JPEG"
            )
            for _ in range(rng.integers(3, 9))
        ]
        for _ in range(count)
    ]


def refuse_differences(together: list[Prediction], alone: list[Prediction]) -> None:
    """End the program unless every answer has the same text and a confidence equal to 1e-4."""
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        if one.text != other.text or abs(one.confidence - other.confidence) > 1e-4:
            raise SystemExit(
                f"tracklet {number} reads {one.text!r} ({one.confidence:.4f}) in a batch and "
                f"{other.text!r} ({other.confidence:.4f}) alone"
            )


def in_turns(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy moment of the machine falls on both."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = perf_counter()
            way()  # readings are plain numbers and text, so a GPU has finished when they are there
            times[name].append(perf_counter() - started)
    return {name: median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
