"""A batch of tracklets through the engine in one call against a loop of single calls.

    python benchmarks/tracklet_batches.py

Both start from encoded frames and must give the same answers; weights are random, from a fixed seed.
"""

from __future__ import annotations

import numpy as np
from material import NUMBERS, random_recognizer
from measure import command_line, in_turns, share_read_alike, together_and_alone

from glyphrun.engine import Engine
from glyphrun.images import encode_image
from glyphrun.prediction import Prediction
from glyphrun.recipe import processor_for

RECOGNIZERS = ("query-digits-nano", "parseq-nano")


def main() -> None:
    """Print tracklets/s of both ways and their ratio, a line for each recognizer."""
    parser = command_line(__doc__, repeats=9, precision=True)
    parser.add_argument("--tracklets", type=int, default=64)
    asked = parser.parse_args()
    items = tracklets(asked.tracklets, asked.seed)
    for name in RECOGNIZERS:
        recognizer = random_recognizer(name, asked.seed)
        engine = Engine(recognizer, NUMBERS, processor_for(recognizer.settings), precision=asked.precision)
        ways = together_and_alone(engine.read, items)
        equal = share_read_alike(name, ways["batch"](), ways["single"](), engine.precision)
        times = in_turns(ways, asked.repeats)
        print(
            f"{name}: device {engine.device}, precision {engine.precision}, {len(items)} tracklets of 3 to 8 frames, "
            f"{equal:.1%} of the readings equal"
        )
        print(
            f"{name}: one call {len(items) / times['batch']:.1f} tracklets/s "
            f"({stages(ways['batch']())}), "
            f"loop {len(items) / times['single']:.1f} tracklets/s"
        )
        print(f"{name}: ratio {times['single'] / times['batch']:.2f}")


def stages(predictions: list[Prediction]) -> str:
    """What took how long: all images are decoded first, and then read in parts that know their own times."""
    parts = [dict(part) for part in {tuple(one.timings.items()) for one in predictions}]
    encode, search = (sum(part[stage] for part in parts) for stage in ("encode", "search"))
    return f"decode {parts[0]['decode']:.1f} ms, encode {encode:.1f} ms, search {search:.1f} ms"


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


if __name__ == "__main__":
    main()
