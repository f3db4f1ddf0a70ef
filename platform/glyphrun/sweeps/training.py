"""The training of one trial, in the process of the trial or in each of its workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from glyphrun.bundle import save_bundle
from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.memory import OutOfMemory
from glyphrun.models.lora import merge_lora
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.trials import Outcome, checkpoint_folder, read_reports, write_json, write_outcome
from glyphrun.training.fit import TrainingDiverged, fit
from glyphrun.training.parallel import Workers
from glyphrun.training.start import check_samples, start_recognizer

SNAPSHOTS = "snapshots"  # bundles of a trial's recognizer at stated steps, beside its checkpoint


def train_trial(
    trial: Trial,
    folder: Path,
    charset: str,
    train: FrameArrays,
    val: FrameArrays,
    *,
    workers: Workers = Workers(),
    device: torch.device | None = None,
) -> Iterator[dict[str, Any]]:
    """Train, and yield what Tune is told, once for each report; it goes on from what the folder holds.

    How the trial ended is written there where that will not change by trying again.
    """
    settings = parse_settings(trial.settings)
    processor = processor_for(settings)
    codec = codec_for(settings, charset, (*train.texts, *val.texts))
    recognizer, moved = start_recognizer(settings, codec, trial.start, trial.train.seed)
    check_samples(recognizer, codec, train)
    if moved and workers.first:
        write_json(folder / "transfer.json", [asdict(tensor) for tensor in moved])

    def score(trained: Recognizer) -> Scores:
        return evaluate(Engine(trained, codec, processor, trial.decode, device=device), val)

    def snapshot(trained: Recognizer, step: int) -> None:
        whole = copy.deepcopy(trained)
        merge_lora(whole)
        kept = folder / SNAPSHOTS / f"step-{step:06}"
        if not kept.exists():  # a run that was killed after this step and before its checkpoint has left it
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

    reports = fit(
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
    )
    try:
        for report in reports:
            yield metrics(asdict(report))
    except (TrainingDiverged, OutOfMemory) as error:
        write_outcome(folder, Outcome("failed", str(error)))
        raise
    if workers.first:
        write_outcome(folder, Outcome("finished"))


def earlier_metrics(folder: Path) -> list[dict[str, Any]]:
    """What Tune was told of a trial by the reports in its checkpoint."""
    return [metrics(report) for report in read_reports(folder)]


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
