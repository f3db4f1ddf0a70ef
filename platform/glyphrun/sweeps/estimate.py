"""What a sweep will cost, told before it starts: a few real steps of each kind of trial, timed and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from glyphrun.data.batches import FrameArrays
from glyphrun.data.sample import read_card
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.training import load_splits
from glyphrun.training.fit import TrainSettings, fit
from glyphrun.training.start import start_recognizer

TIMED_STEPS = 3
TIMED_ITEMS = 16


@dataclass(frozen=True)
class Estimate:
    """Of one kind of trial: seconds of a step and of an evaluation of val on this machine, 10⁹ operations of a step."""

    step_seconds: float
    evaluation_seconds: float
    step_gflops: float

    def hours(self, train: TrainSettings) -> float:
        """Of a trial that trains to its end on this machine."""
        evaluations = -(-train.steps // train.evaluate_every)
        return (train.steps * self.step_seconds + evaluations * self.evaluation_seconds) / 3600

    def hours_at(self, train: TrainSettings, tflops: float) -> float:
        """Of the steps of a trial on a machine that sustains so many 10¹² operations a second."""
        return train.steps * self.step_gflops / 1e3 / tflops / 3600


def kind_of(trial: Trial) -> str:
    """Trials of one kind cost the same for a step."""
    train = trial.train.model_dump(include={"batch_size", "accumulate", "frames_per_item", "augment"}, mode="json")
    parts = [trial.settings, train, trial.start.model_dump(mode="json"), trial.decode.model_dump(mode="json")]
    return json.dumps(parts, sort_keys=True)


def time_trials(trials: Sequence[Trial], dataset: Path) -> dict[str, Estimate]:
    """Train a few real steps of each kind of trial in this process and read some of val; by kind."""
    charset = read_card(dataset).charset
    kinds: dict[str, Trial] = {}
    for trial in trials:
        kinds.setdefault(kind_of(trial), trial)
    splits: dict[Any, tuple[FrameArrays, FrameArrays]] = {}
    found = {}
    threads = torch.get_num_threads()
    try:
        for kind, trial in kinds.items():
            processor = processor_for(parse_settings(trial.settings))
            if processor not in splits:
                splits[processor] = load_splits(dataset, processor)
            torch.set_num_threads(trial.resources.cpus or 1)
            found[kind] = _timed(trial, charset, *splits[processor])
    finally:
        torch.set_num_threads(threads)
    return found


def _timed(trial: Trial, charset: str, train: FrameArrays, val: FrameArrays) -> Estimate:
    settings = parse_settings(trial.settings)
    processor, codec = processor_for(settings), codec_for(settings, charset, (*train.texts, *val.texts))
    recognizer, _ = start_recognizer(settings, codec, trial.start, trial.train.seed)
    some = _first(val, TIMED_ITEMS)
    counter = FlopCounterMode(display=False)
    spent: list[float] = []
    operations: list[int] = []

    def score(trained: Recognizer) -> Scores:
        if not spent:
            operations.append(counter.get_total_flops())
            counting.close()
        started = perf_counter()
        scores = evaluate(Engine(trained, codec, processor, trial.decode), some)
        spent.append(perf_counter() - started)
        return scores

    steps = 1 + TIMED_STEPS  # the first fills caches, and is the one that is counted
    plan = trial.train.model_copy(
        update={"steps": steps, "warmup": 0, "evaluate_every": 1, "checkpoint_every": steps, "snapshot_every": None}
    )
    with TemporaryDirectory() as folder, ExitStack() as counting:
        counting.enter_context(counter)
        reports = fit(recognizer, codec, processor, train, score, plan, Path(folder) / "checkpoint")
        seconds = [report.seconds for report in reports]
    alone = [
        later - earlier - evaluation
        for earlier, later, evaluation in zip(seconds, seconds[1:], spent[1:], strict=False)
    ]
    share = len(val) / len(some)
    return Estimate(float(np.median(alone)), float(np.median(spent[1:])) * share, operations[0] / 1e9)


def _first(arrays: FrameArrays, count: int) -> FrameArrays:
    offsets = arrays.offsets[: count + 1]
    frames = int(offsets[-1])
    return replace(
        arrays,
        offsets=offsets,
        shapes=arrays.shapes[:frames],
        sizes=arrays.sizes[:frames],
        texts=arrays.texts[:count],
        sample_ids=arrays.sample_ids[:count],
    )
