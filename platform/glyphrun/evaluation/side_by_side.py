"""Several readers on one split: what each scores and how fast it is, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from glyphrun.data.batches import FrameArrays
from glyphrun.data.sample import iterate_samples, read_card
from glyphrun.ensemble import Reader
from glyphrun.evaluation.cost import measure_latency
from glyphrun.evaluation.evaluate import Scores, read_and_score
from glyphrun.images import ImageProcessor
from glyphrun.prediction import Prediction

ROUNDS = 2  # of reading the split, of which the faster counts
TIMED_ITEMS = 16
REPEATS = 32


@dataclass(frozen=True)
class Figures:
    """What a reader makes of a split.

    predictions: in the order of the items. ms: one item alone from encoded frames to text, median. images_per_s: frames of
    the split, read in batches.
    """

    predictions: Sequence[Prediction]
    scores: Scores
    ms: float
    images_per_s: float


def side_by_side(
    readers: Sequence[Reader],
    dataset: Path,
    split: str,
    arrays: Mapping[ImageProcessor, FrameArrays],
    tell: Callable[[str], None],
) -> list[Figures]:
    """Figures of each reader, interleaved, so that a slow moment of the machine meets them all.

    arrays: the split for every image processor that a reader has; tell is told each step.
    """
    known = iterate_samples(dataset, "train") if "train" in read_card(dataset).counts else iter(())
    texts = {sample.text for sample in known if sample.text is not None}
    tell(f"all on {split}")
    rounds = [
        [
            read_and_score(reader, [arrays[processor] for processor in reader.processors], trained_texts=texts)
            for reader in readers
        ]
        for _ in range(ROUNDS)
    ]
    tell("all on one item at a time")
    labelled = (sample.frames for sample in iterate_samples(dataset, split) if sample.text is not None)
    items = list(islice(labelled, TIMED_ITEMS))
    # The number of threads stays: compiled blocks hold for the one that they were compiled under.
    latencies = measure_latency(readers, items, repeats=REPEATS, threads=torch.get_num_threads())
    figures = []
    for reader, found, latency in zip(readers, zip(*rounds, strict=True), latencies, strict=True):
        predictions, scores = max(found, key=lambda pair: pair[1].samples_per_s)
        frames = arrays[reader.processor]
        images = len(frames.shapes) / len(frames)
        figures.append(Figures(predictions, scores, latency.p50, scores.samples_per_s * images))
    return figures
