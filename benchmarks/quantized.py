"""A quantized bundle, as it is loaded, against its float32 parent: milliseconds a batch and bytes of the weights.

    python benchmarks/quantized.py

Weights are random, from a fixed seed; both read the same frames, in turns. A ratio above 1 is faster than float32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from glyphrun.bundle import load_engine, save_bundle
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import available_cores
from glyphrun.engine import Engine
from glyphrun.images import FrameStack, stack_frames
from glyphrun.models.inference import computes_in_int8
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.quantized import quantize_bundle
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec

RECOGNIZERS = ("parseq-tiny", "parseq-nano")
BATCHES = (1, 64)


def main() -> None:
    """Print the size and, a line for each batch, both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recognizers", nargs="+", default=RECOGNIZERS)
    parser.add_argument("--method", choices=["int8", "float16", "bfloat16"], default="int8")
    parser.add_argument("--repeats", type=int, default=15, help="of a batch; a frame alone is read ten times as often")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.recognizers:
        with tempfile.TemporaryDirectory() as folder:
            parent, quantized = Path(folder) / "parent", Path(folder) / "quantized"
            save_random(parent, name, asked.seed)
            size = quantize_bundle(parent, quantized, asked.method).size_ratio
            started = perf_counter()
            engines = [load_engine(parent, precision="float32"), load_engine(quantized)]
            seconds = perf_counter() - started
        computed = "int8" if computes_in_int8(engines[1].recognizer) else engines[1].precision
        print(f"{name}: {asked.method} computed in {computed}, {asked.threads} threads, loaded in {seconds:.1f} s")
        print(f"{name}: size {size:.3f} of float32")
        for batch in BATCHES:
            before, after = in_turns(
                engines, frames(engines[0], batch, asked.seed), asked.repeats * (10 if batch == 1 else 1)
            )
            print(
                f"{name}, batch {batch}: float32 {before:.2f} ms, {asked.method} {after:.2f} ms, ratio {before / after:.2f}"
            )


def save_random(folder: Path, name: str, seed: int) -> None:
    """A bundle of a recognizer that has learned nothing."""
    settings, codec = recognizer_settings(name), Codec(DIGITS, 2)
    torch.manual_seed(seed)
    save_bundle(
        folder,
        name=name,
        recognizer=build(settings, codec),
        codec=codec,
        processor=processor_for(settings),
        decode=DecodeSettings(),
        metrics={},
        provenance={},
    )


def frames(engine: Engine, count: int, seed: int) -> list[FrameStack]:
    """Still images of noise at the recognizer's size."""
    rng = np.random.default_rng(seed)
    shape = (engine.processor.height, engine.processor.width, 3)
    return [stack_frames([engine.processor(rng.integers(0, 256, shape, np.uint8))]) for _ in range(count)]


def in_turns(engines: list[Engine], items: list[FrameStack], repeats: int) -> list[float]:
    """Median milliseconds of each engine; they take turns, so that a busy moment of the machine falls on both."""
    times: list[list[float]] = [[] for _ in engines]
    for repeat in range(-2, repeats):  # two unmeasured rounds fill caches
        for engine, measured in zip(engines, times, strict=True):
            started = perf_counter()
            engine.read_prepared(items)
            if repeat >= 0:
                measured.append((perf_counter() - started) * 1e3)
    return [median(measured) for measured in times]


if __name__ == "__main__":
    main()
