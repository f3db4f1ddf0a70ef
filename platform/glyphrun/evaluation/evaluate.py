"""Scores of an engine on a split of a data set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from glyphrun.data.batches import FrameArrays
from glyphrun.ensemble import Reader
from glyphrun.evaluation.metrics import (
    ErrorCounts,
    Interval,
    Unit,
    character_error_rate,
    count_errors,
    exact_match,
    word_error_rate,
)
from glyphrun.prediction import Prediction
from glyphrun.text import Codec, TextError


@dataclass(frozen=True)
class Scores:
    """What a split says of an engine.

    exact, cer and wer carry 95 % confidence intervals. by_length maps the truth's length to n, exact and cer; by_training
    does so for «seen» and «unseen»: items whose text training had or had not, empty if its texts were not given.
    confusions are the most frequent wrong readings. Times cover reading of decoded frames, in batches.
    """

    n: int
    exact: Interval
    cer: Interval
    wer: Interval
    by_length: dict[str, dict[str, float]]
    by_training: dict[str, dict[str, float]]
    confusions: tuple[dict[str, Any], ...]
    ms_per_sample: float
    samples_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Flat, with intervals as pairs: ``exact``, ``exact_ci``, …; a rate over no characters is null."""
        flat = asdict(self)
        for name in ("exact", "cer", "wer"):
            interval = flat.pop(name)
            flat[name], flat[f"{name}_ci"] = (
                _finite(interval["value"]),
                [_finite(interval["low"]), _finite(interval["high"])],
            )
        return flat


def read_split(
    reader: Reader,
    arrays: FrameArrays | Sequence[FrameArrays],
    progress: Callable[[int], None] | None = None,
    *,
    explain: bool = False,
) -> list[Prediction]:
    """A prediction for every item, in the order of the items; arrays: the split, for each processor of an ensemble."""
    splits = [arrays] if isinstance(arrays, FrameArrays) else arrays
    stacks = [tuple(split.item(item) for split in splits) for item in range(len(splits[0]))]
    items = stacks if len(splits) > 1 else [stack for (stack,) in stacks]
    return reader.read_prepared(items, explain=explain, progress=progress)


def evaluate(
    reader: Reader,
    arrays: FrameArrays | Sequence[FrameArrays],
    progress: Callable[[int], None] | None = None,
    *,
    trained_texts: Collection[str] = (),
    unit: Unit = "characters",
) -> Scores:
    """Read a decoded split and score the readings against its labels; trained_texts are the labels of training."""
    return read_and_score(reader, arrays, progress, trained_texts=trained_texts, unit=unit)[1]


def out_of_reach(reader: Reader, texts: Sequence[str]) -> str | None:
    """What to know of labels that no reading of a recognizer can equal, such as those in another script; None: of none."""
    codec = getattr(reader, "codec", None)
    if not isinstance(codec, Codec):  # subwords spell any text, and of an ensemble one member may
        return None
    refused: list[TextError] = []
    for text in texts:
        try:
            codec.encode(text)
        except TextError as error:
            refused.append(error)
    if not refused:
        return None
    return f"{len(refused)} of {len(texts)} labels are beyond what this recognizer can write; the first: {refused[0]}"


def read_and_score(
    reader: Reader,
    arrays: FrameArrays | Sequence[FrameArrays],
    progress: Callable[[int], None] | None = None,
    *,
    trained_texts: Collection[str] = (),
    unit: Unit = "characters",
) -> tuple[list[Prediction], Scores]:
    """A prediction for every item, in the order of the items, and their scores."""
    started = perf_counter()
    predictions = read_split(reader, arrays, progress)
    seconds = perf_counter() - started
    readings = [prediction.text for prediction in predictions]
    texts = arrays.texts if isinstance(arrays, FrameArrays) else arrays[0].texts
    return predictions, score(texts, readings, seconds, trained_texts=trained_texts, unit=unit)


def score(
    truths: Sequence[str],
    readings: Sequence[str],
    seconds: float,
    *,
    trained_texts: Collection[str] = (),
    unit: Unit = "characters",
) -> Scores:
    """Scores of readings that took some seconds altogether; unit: what CER and lengths count."""
    errors = count_errors(truths, readings, unit=unit)
    wrong = Counter(pair for pair in zip(truths, readings, strict=True) if pair[0] != pair[1])
    known = frozenset(trained_texts)
    seen = np.array([truth in known for truth in truths])
    return Scores(
        n=len(truths),
        exact=exact_match(errors),
        cer=character_error_rate(errors),
        wer=word_error_rate(errors),
        by_length={
            str(length): _of_some(errors, errors.characters == length) for length in np.unique(errors.characters)
        },
        by_training={
            name: _of_some(errors, group)
            for name, group in (("seen", seen), ("unseen", ~seen))
            if known and group.any()
        },
        confusions=tuple(
            {"truth": truth, "reading": reading, "n": times} for (truth, reading), times in wrong.most_common(100)
        ),
        ms_per_sample=seconds * 1e3 / len(truths),
        samples_per_s=len(truths) / seconds,
    )


def _of_some(errors: ErrorCounts, chosen: np.ndarray) -> dict[str, float]:
    characters = errors.characters[chosen].sum()
    rates = {"n": int(chosen.sum()), "exact": float(errors.exact[chosen].mean())}
    return {**rates, "cer": float(errors.character_edits[chosen].sum() / characters)} if characters else rates


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
