"""Early exit against reading every window, on simulated tracklets of 24 to 30 frames with 12 windows of two frames.

    python benchmarks/early_exit.py

The first run trains a small recognizer for some minutes and keeps it in runs/. The threshold is chosen on tracklets of
their own and judged on others; both ways see the same windows, so the rest is up to which are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from material import NUMBERS, planned_tracklets, random_recognizer
from measure import command_line, in_turns
from safetensors.torch import load_file, save_file

from glyphrun.data.batches import FrameArrays
from glyphrun.data.simulate import SimulatorSettings, simulate_tracklet
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.images import Frame, ImageProcessor
from glyphrun.models.recognizer import Recognizer
from glyphrun.prediction import Prediction
from glyphrun.recipe import processor_for
from glyphrun.training.augment import AugmentSettings
from glyphrun.training.fit import TrainSettings, fit

WINDOWS, WINDOW_FRAMES = 12, 2
LONG = SimulatorSettings(frames=(24, 30))
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
MOST_WINDOWS, MOST_LOST = 0.4, 0.005
LOST_ON_VAL = 0.001  # less than may be lost, since what is chosen on one set is a little worse on another


def main() -> None:
    """Print what each threshold reads and gets right, and the ratio of times for the one that val chooses."""
    parser = command_line(__doc__, repeats=5, precision=True)
    parser.add_argument("--recognizer", choices=["query-digits-nano", "parseq-nano"], default="query-digits-nano")
    parser.add_argument("--tracklets", type=int, default=1000, help="of the test; val has as many")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs/early-exit"))
    asked = parser.parse_args()
    recognizer = random_recognizer(asked.recognizer, asked.seed, changes={"fusion": "attention"})
    processor = processor_for(recognizer.settings)
    weights = asked.runs / f"{asked.recognizer}-{asked.steps}-{asked.seed}.safetensors"
    if not weights.exists():
        train(recognizer, processor, asked.steps, asked.seed, weights)
    recognizer.load_state_dict(load_file(weights))
    everything = DecodeSettings(windows=WINDOWS, window_frames=WINDOW_FRAMES)
    engine = Engine(recognizer, NUMBERS, processor, everything, precision=asked.precision)
    print(f"{asked.recognizer} trained for {asked.steps} steps, device {engine.device}, precision {engine.precision}")

    val = simulated("val", asked.tracklets, LONG, processor, asked.seed)
    test = simulated("test", asked.tracklets, LONG, processor, asked.seed)
    ways = {f"{threshold:g}": engine.with_settings(everything.model_copy(update={"early_exit": threshold}))
            for threshold in THRESHOLDS}  # fmt: skip
    ways = {"decided": engine.with_settings(everything.model_copy(update={"early_exit": "decided"})), **ways}
    on_val, on_test = {}, {}
    print("\nearly exit   windows read  exact on val   windows read  exact on test")
    for name, reader in {"every window": engine, **ways}.items():
        on_val[name], on_test[name] = measured(reader, val), measured(reader, test)
        cells = [f"{share:12.3f}  {100 * exact:11.2f} %" for share, exact in (on_val[name], on_test[name])]
        print(f"{name:12s} {'  '.join(cells)}")

    whole = on_val["every window"][1]
    good = [name for name in ways if on_val[name][1] >= whole - LOST_ON_VAL]
    chosen = min(good, key=lambda name: on_val[name][0])
    share, exact = on_test[chosen]
    lost = on_test["every window"][1] - exact
    times = in_turns({"every": lambda: read(engine, test), "early": lambda: read(ways[chosen], test)}, asked.repeats)
    print(
        f"\nval chooses {chosen}: on test {share:.3f} of the windows are read (at most {MOST_WINDOWS}) and "
        f"{100 * lost:+.2f} points of exact match lost (at most {100 * MOST_LOST})"
    )
    print(
        f"every window {len(test) / times['every']:.1f} tracklets/s, early exit {len(test) / times['early']:.1f} tracklets/s"
    )
    print(f"ratio {times['every'] / times['early']:.2f}")
    if share > MOST_WINDOWS or lost > MOST_LOST:
        raise SystemExit("early exit reads or loses more than it may")


def train(recognizer: Recognizer, processor: ImageProcessor, steps: int, seed: int, weights: Path) -> None:
    """Train on tracklets of 3 to 8 frames, as the demo does, and keep the weights."""
    torch.manual_seed(seed)
    train_on = simulated("train", 4000, SimulatorSettings(), processor, seed)
    held_out = simulated("val", 200, SimulatorSettings(), processor, seed)
    settings = TrainSettings(
        steps=steps,
        batch_size=32,
        warmup=100,
        evaluate_every=max(steps // 5, 1),
        augment=AugmentSettings(invert=0.0, erase=0.1, colour=0.15, shift=0.04, scale=0.1, rotation=0.1, shear=0.08),
        seed=seed,
    )
    for report in fit(
        recognizer,
        NUMBERS,
        processor,
        train_on,
        lambda trained: evaluate(Engine(trained, NUMBERS, processor), held_out),
        settings,
        weights.with_suffix(".checkpoint"),
    ):
        print(f"step {report.step}, {report.seconds:.0f} s: exact {report.scores['exact']:.3f} on val", flush=True)
    save_file(recognizer.state_dict(), weights)


def simulated(split: str, count: int, settings: SimulatorSettings, processor: ImageProcessor, seed: int) -> FrameArrays:
    """Tracklets of a split, rendered and resized."""
    frames: list[Frame] = []
    offsets, texts, names = [0], [], []
    for plan, glyphs in planned_tracklets({split: count}, settings, seed):
        rng = np.random.default_rng(plan.seed)
        tracklet = simulate_tracklet(plan.number, glyphs, settings, rng, readable=plan.readable)
        frames += [processor(frame) for frame in tracklet.frames]
        offsets.append(len(frames))
        texts.append(plan.number if plan.readable else "")
        names.append(plan.sample_id)
    return FrameArrays.of_frames(frames, offsets, texts, names)


def read(engine: Engine, arrays: FrameArrays) -> list[Prediction]:
    """Every tracklet."""
    return engine.read_prepared([arrays.item(number) for number in range(len(arrays))])


def measured(engine: Engine, arrays: FrameArrays) -> tuple[float, float]:
    """The share of all windows that is read, and exact match."""
    predictions = read(engine, arrays)
    exact = np.mean([one.text == truth for one, truth in zip(predictions, arrays.texts, strict=True)])
    return sum(len(one.votes) for one in predictions) / (WINDOWS * len(arrays)), float(exact)


if __name__ == "__main__":
    main()
