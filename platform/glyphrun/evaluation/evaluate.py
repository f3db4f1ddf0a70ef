"""Scores of an engine on a split of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from glyphrun.data.batches import FrameArrays, batches_of_similar_length
from glyphrun.engine import Engine, Prediction
from glyphrun.evaluation.metrics import Interval, character_error_rate, count_errors, exact_match, word_error_rate

FRAMES_PER_BATCH = 256


@dataclass(frozen=True)
class Scores:
    """What a split says of an engine.

    exact, cer and wer carry 95 % confidence intervals; by_length maps the truth's length to n and exact; confusions are
    the most frequent wrong readings. Times cover reading of decoded frames, in batches.
    """

    n: int
    exact: Interval
    cer: Interval
    wer: Interval
    by_length: dict[str, dict[str, float]]
    confusions: tuple[dict[str, Any], ...]
    ms_per_sample: float
    samples_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Flat, with intervals as pairs: ``exact``, ``exact_ci``, …"""
        flat = asdict(self)
        for name in ("exact", "cer", "wer"):
            interval = flat.pop(name)
            flat[name], flat[f"{name}_ci"] = interval["value"], [interval["low"], interval["high"]]
        return flat


def read_split(
    engine: Engine, arrays: FrameArrays, progress: Callable[[int], None] | None = None, *, explain: bool = False
) -> list[Prediction]:
    """A prediction for every item, in the order of the items; batches hold tracklets of similar length."""
    predictions: list[Prediction | None] = [None] * len(arrays)
    for items in batches_of_similar_length(arrays, FRAMES_PER_BATCH):
        read = engine.read_prepared([arrays.item(item) for item in items], explain=explain)
        for item, prediction in zip(items, read, strict=True):
            predictions[item] = prediction
        if progress:
            progress(len(items))
    return [prediction for prediction in predictions if prediction is not None]


def evaluate(engine: Engine, arrays: FrameArrays, progress: Callable[[int], None] | None = None) -> Scores:
    """Read a decoded split and score the readings against its labels."""
    started = perf_counter()
    predictions = read_split(engine, arrays, progress)
    return score(arrays.texts, [prediction.text for prediction in predictions], perf_counter() - started)


def score(truths: Sequence[str], readings: Sequence[str], seconds: float) -> Scores:
    """Scores of readings that took some seconds altogether."""
    errors = count_errors(truths, readings)
    wrong = Counter(pair for pair in zip(truths, readings, strict=True) if pair[0] != pair[1])
    lengths = sorted({len(truth) for truth in truths})
    by_length = {
        str(length): {
            "n": int((errors.characters == length).sum()),
            "exact": float(errors.exact[errors.characters == length].mean()),
        }
        for length in lengths
    }
    return Scores(
        n=len(truths),
        exact=exact_match(errors),
        cer=character_error_rate(errors),
        wer=word_error_rate(errors),
        by_length=by_length,
        confusions=tuple(
            {"truth": truth, "reading": reading, "n": times} for (truth, reading), times in wrong.most_common(100)
        ),
        ms_per_sample=seconds * 1e3 / len(truths),
        samples_per_s=len(truths) / seconds,
    )
