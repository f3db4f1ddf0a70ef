"""The training of one trial, in the process of the trial or in each of its workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glyphrun.adapters import save_adapter
from glyphrun.bundle import save_bundle
from glyphrun.data.batches import FrameArrays, load_split
from glyphrun.engine import Engine
from glyphrun.evaluation.cost import measure_latency
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.evaluation.footprint import memory_mib
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.memory import OutOfMemory
from glyphrun.models.lora import carries_lora, merge_lora
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.policies import Objective
from glyphrun.sweeps.trials import (
    ADAPTERS,
    MEASURED,
    SNAPSHOTS,
    Outcome,
    as_changed,
    checkpoint_folder,
    halve_batch,
    read_measured,
    read_reports,
    write_json,
    write_outcome,
)
from glyphrun.training.fit import TrainingDiverged, fit
from glyphrun.training.parallel import Workers
from glyphrun.training.start import check_samples, start_recognizer

TIMED_ITEMS = 8


def load_splits(dataset: Path, processor: ImageProcessor) -> tuple[FrameArrays, FrameArrays]:
    """Train and val of a data set."""
    return load_split(dataset, "train", processor), load_split(dataset, "val", processor)


@dataclass(frozen=True)
class Measure:
    """Objectives that are measured of a trained recognizer: which, for how many frames, and the price of an hour."""

    names: tuple[Objective, ...] = ()
    frames: int = 1
    price_per_hour: float | None = None


def train_trial(
    trial: Trial,
    folder: Path,
    charset: str,
    train: FrameArrays,
    val: FrameArrays,
    *,
    workers: Workers = Workers(),
    device: torch.device | None = None,
    measure: Measure = Measure(),
) -> Iterator[dict[str, Any]]:
    """Train, and yield what Tune is told, once for each report; it goes on from what the folder holds.

    Where memory does not suffice it goes on once with half the batch and twice the accumulation, which is recorded. How the
    trial ended is written there where that will not change by trying again.
    """
    told = 0
    while True:
        changed = as_changed(trial, folder)
        try:
            for report in _train(changed, folder, charset, train, val, workers, device, measure):
                if report["step"] > told:  # those before it ran out of memory come again
                    told = report["step"]
                    yield report
            break
        except OutOfMemory as error:
            if changed.train != as_changed(trial, folder).train:
                raise  # another worker was first to say so
            if not halve_batch(changed, folder, str(error), least=workers.world):
                write_outcome(folder, Outcome("failed", str(error)))
                raise
            if workers.world > 1:
                raise  # Train starts all workers anew
        except TrainingDiverged as error:
            write_outcome(folder, Outcome("failed", str(error)))
            raise
    if workers.first:
        write_outcome(folder, Outcome("finished"))


def _train(
    trial: Trial,
    folder: Path,
    charset: str,
    train: FrameArrays,
    val: FrameArrays,
    workers: Workers,
    device: torch.device | None,
    measure: Measure,
) -> Iterator[dict[str, Any]]:
    settings = parse_settings(trial.settings)
    processor = processor_for(settings)
    codec = codec_for(settings, charset, (*train.texts, *val.texts))
    recognizer, moved = start_recognizer(settings, codec, trial.start, trial.train.seed)
    check_samples(recognizer, codec, train)
    if moved and workers.first:
        write_json(folder / "transfer.json", [asdict(tensor) for tensor in moved])

    def score(trained: Recognizer) -> Scores:
        engine = Engine(trained, codec, processor, trial.decode, device=device)
        if measure.names and workers.first and not (folder / MEASURED).exists():
            write_json(folder / MEASURED, measured(engine, val, measure))
        return evaluate(engine, val)

    def snapshot(trained: Recognizer, step: int) -> None:
        kept, alone = (folder / kind / f"step-{step:06}" for kind in (SNAPSHOTS, ADAPTERS))
        # A run that was killed after this step and before its checkpoint has left them.
        if carries_lora(trained) and not alone.exists():
            save_adapter(alone, trained, trial.start.lora)
        if not kept.exists():
            whole = copy.deepcopy(trained)
            merge_lora(whole)
            save_bundle(
                kept,
                name=f"{trial.id}-{step}",
                recognizer=whole,
                codec=codec,
                processor=processor,
                decode=trial.decode,
                metrics={},
                provenance={"trial": trial.id, "step": str(step), "seed": str(trial.train.seed)},
            )

    for report in fit(
        recognizer,
        codec,
        processor,
        train,
        score,
        trial.train,
        checkpoint_folder(folder),
        device=device,
        workers=workers,
        snapshot=snapshot,
    ):
        yield {**metrics(asdict(report)), **read_measured(folder)}


def measured(engine: Engine, val: FrameArrays, measure: Measure) -> dict[str, float]:
    """What reading costs: ms of an item of so many frames, median, bytes to text; memory in MiB of weights and of what
    reading adds; cost of a million items.

    Weights have no part in it but for how long a text they make up, so it is measured once, when a trial first reports.
    """
    items = []
    for number in range(min(TIMED_ITEMS, len(val))):
        rows = np.resize(np.arange(val.offsets[number], val.offsets[number + 1]), measure.frames)
        items.append([encode_image(val.frame(int(row)).transpose(1, 2, 0), "JPEG") for row in rows])
    (latency,) = measure_latency([engine], items, repeats=2 * TIMED_ITEMS, threads=torch.get_num_threads())
    values = {"ms": latency.p50, "memory": memory_mib(engine, items[0])}
    if measure.price_per_hour is not None:
        values["cost"] = cost_of_a_million(latency.p50, measure.price_per_hour)
    return {name: values[name] for name in measure.names}


def cost_of_a_million(ms: float, price_per_hour: float) -> float:
    """What it costs to read a million items one after another, in the price's currency."""
    return ms * 1e6 / 3.6e6 * price_per_hour


def earlier_metrics(folder: Path) -> list[dict[str, Any]]:
    """What Tune was told of a trial by the reports in its checkpoint."""
    return [{**metrics(report), **read_measured(folder)} for report in read_reports(folder)]


def metrics(report: dict[str, Any]) -> dict[str, Any]:
    """What Tune is told of a report (``training.fit.Report`` as JSON)."""
    scores = report["scores"]
    return {
        "step": report["step"],
        "seconds": report["seconds"],
        "train_loss": report["train_loss"],
        "exact": scores["exact"],
        "cer": scores["cer"],
    }
