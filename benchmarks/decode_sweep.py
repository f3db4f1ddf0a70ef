"""A decode sweep of 24 settings against 24 separate evaluations with the same settings.

    python benchmarks/decode_sweep.py

Each separate evaluation does what ``glyphrun evaluate`` does: it loads bundle and split, encodes, searches and scores. The
sweep loads and encodes once; its time includes Ray's start and end, the processes of the trials and its paired bootstraps.
That of a process for each evaluation is not counted. What one process takes for one encoding and all searches is printed
beside it: about as fast as a sweep can be. Both must give the same scores or the script stops with an error.
Weights are random, from a fixed seed. Aim: at least 8 times as fast.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from material import planned_tracklets, random_recognizer, save_random_bundle
from measure import command_line

from glyphrun.bundle import load_engine
from glyphrun.cluster import ray_for_command
from glyphrun.data.batches import load_split
from glyphrun.data.shards import write_samples
from glyphrun.data.simulate import SimulatorSettings, render_plan
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import default_device
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.models.recognizer import Recognizer
from glyphrun.sweeps.decode import decode_sweep
from glyphrun.sweeps.decode_settings import DecodeSpace, plan_points
from glyphrun.sweeps.points import DecodePoint
from glyphrun.text import DIGITS

SPACE = DecodeSpace(
    base={"n_best": 3, "samples": 3},
    space={
        "search": ["greedy", "beam", "sample"],
        "width": [3, 5, 7],
        "length_penalty": [0.0, 0.5, 1.0],
        "early_stop": [False, True],
        "temperature": [0.5, 0.7, 0.9, 1.1, 1.3],
    },
)


def main() -> None:
    """Print seconds of both ways and their ratio."""
    parser = command_line(__doc__)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--frames", type=int, default=8, help="of each tracklet")
    parser.add_argument("--recognizer", default="parseq-tiny")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        dataset, bundle, out = (Path(folder) / name for name in ("data", "bundle", "out"))
        write_tracklets(dataset, asked.items, asked.frames, asked.seed)
        save_random_bundle(bundle, stretched(asked.recognizer, asked.seed))
        points, _ = plan_points(SPACE, {"bundle": DecodeSettings()}, {"bundle": "parseq"})
        started = perf_counter()
        with ray_for_command():
            rows = decode_sweep(points, {"bundle": bundle}, dataset, "val", out)
        together = perf_counter() - started
        started = perf_counter()
        scores = [evaluated(bundle, dataset, point) for point in points]
        apart = perf_counter() - started
        encoding, searching = least(bundle, dataset, points)
    refuse_differences(points, rows, scores)
    print(
        f"{asked.recognizer}, device {default_device()}, {torch.get_num_threads()} threads, {asked.items} tracklets of "
        f"{asked.frames} frames, {len(points)} settings, {len({row['cer'] for row in rows})} different CERs, the same from both"
    )
    print(f"sweep {together:.1f} s, separate evaluations {apart:.1f} s, ratio {apart / together:.1f}")
    print(
        f"in one process without Ray: encoding {encoding:.1f} s, all searches {searching:.1f} s, "
        f"ratio {apart / (encoding + searching):.1f}"
    )


def write_tracklets(folder: Path, items: int, frames: int, seed: int) -> None:
    """Simulated tracklets, all in val but a few."""
    settings = SimulatorSettings(frames=(frames, frames))
    counts = {"train": 8, "val": items, "test": 8, "unseen": 8}
    write_samples(
        (render_plan(plan, glyphs, settings) for plan, glyphs in planned_tracklets(counts, settings, seed)),
        folder,
        name="tracklets",
        licence="none, it is made for a benchmark",
        description="Simulated shirt numbers.",
        charset=DIGITS,
    )


@torch.no_grad()
def stretched(name: str, seed: int) -> Recognizer:
    """A recognizer that reads all frames together, its weights stretched so that texts differ."""
    recognizer = random_recognizer(name, seed, changes={"fusion": "mean"})
    for parameter in recognizer.parameters():
        parameter.mul_(1.5)
    return recognizer


def evaluated(bundle: Path, dataset: Path, point: DecodePoint) -> dict[str, Any]:
    """The scores of one setting, from the files on."""
    engine = load_engine(bundle).with_settings(point.decode)
    return evaluate(engine, load_split(dataset, "val", engine.processor)).to_json()


def least(bundle: Path, dataset: Path, points: list[DecodePoint]) -> tuple[float, float]:
    """Seconds of loading and encoding once, and of all searches one after another."""
    started = perf_counter()
    engine = load_engine(bundle)
    arrays = load_split(dataset, "val", engine.processor)
    batches = engine.encode([arrays.item(number) for number in range(len(arrays))])
    encoded = perf_counter()
    for point in points:
        reader = engine.with_settings(point.decode)
        for _, batch in batches:
            reader.decode(batch)
    return encoded - started, perf_counter() - encoded


def refuse_differences(points: list[DecodePoint], rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> None:
    """Exit unless every setting has the same scores from both."""
    by_point = {DecodePoint.model_validate(row["point"]): row for row in rows}
    for point, score in zip(points, scores, strict=True):
        row = by_point[point]
        if any(row[key] != score[key] for key in ("n", "exact", "cer", "wer")):
            raise SystemExit(f"{point.name}: the sweep and the separate evaluation have different scores")


if __name__ == "__main__":
    main()
