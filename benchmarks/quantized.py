"""A quantized bundle, as it is loaded, against its float32 parent: milliseconds a batch and bytes of the weights.

    python benchmarks/quantized.py

Weights are random, from a fixed seed; both read the same frames, in turns. A ratio above 1 is faster than float32.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from material import random_recognizer, save_random_bundle
from measure import command_line, in_turns

from glyphrun.bundle import load_engine
from glyphrun.device import available_cores
from glyphrun.engine import Engine
from glyphrun.images import FrameStack, stack_frames
from glyphrun.models.inference import computes_in_int8
from glyphrun.quantized import quantize_bundle

RECOGNIZERS = ("parseq-tiny", "parseq-nano")
BATCHES = (1, 64)


def main() -> None:
    """Print the size and, a line for each batch, both times and their ratio."""
    parser = command_line(__doc__, repeats=15)
    parser.add_argument("--recognizers", nargs="+", default=RECOGNIZERS)
    parser.add_argument("--method", choices=["int8", "float16", "bfloat16"], default="int8")
    parser.add_argument("--threads", type=int, default=available_cores())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.recognizers:
        with tempfile.TemporaryDirectory() as folder:
            parent, quantized = Path(folder) / "parent", Path(folder) / "quantized"
            save_random_bundle(parent, random_recognizer(name, asked.seed))
            size = quantize_bundle(parent, quantized, asked.method).size_ratio
            started = perf_counter()
            before, after = load_engine(parent, precision="float32"), load_engine(quantized)
            seconds = perf_counter() - started
        computed = "int8" if computes_in_int8(after.recognizer) else after.precision
        print(f"{name}: {asked.method} computed in {computed}, {asked.threads} threads, loaded in {seconds:.1f} s")
        print(f"{name}: size {size:.3f} of float32")
        for batch in BATCHES:
            items = frames(before, batch, asked.seed)
            # A frame alone is read ten times as often: what else the machine does weighs more there.
            times = in_turns(
                {"before": partial(before.read_prepared, items), "after": partial(after.read_prepared, items)},
                asked.repeats * (10 if batch == 1 else 1),
            )
            print(
                f"{name}, batch {batch}: float32 {times['before'] * 1e3:.2f} ms, "
                f"{asked.method} {times['after'] * 1e3:.2f} ms, ratio {times['before'] / times['after']:.2f}"
            )


def frames(engine: Engine, count: int, seed: int) -> list[FrameStack]:
    """Still images of noise at the recognizer's size."""
    rng = np.random.default_rng(seed)
    shape = (engine.processor.height, engine.processor.width, 3)
    return [stack_frames([engine.processor(rng.integers(0, 256, shape, np.uint8))]) for _ in range(count)]


if __name__ == "__main__":
    main()
