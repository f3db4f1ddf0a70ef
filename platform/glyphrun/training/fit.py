"""Training of one recognizer, as a generator of reports: whoever runs it decides whether it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from glyphrun.data.batches import FrameArrays, TrainingOrder
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.evaluation.evaluate import Scores
from glyphrun.images import ImageProcessor
from glyphrun.memory import or_out_of_memory
from glyphrun.models.recognizer import Recognizer
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec
from glyphrun.training.augment import AugmentSettings
from glyphrun.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from glyphrun.training.gradient import Gradient
from glyphrun.training.memory import batch_that_fits
from glyphrun.training.optim import Schedule, learning_rate_at, make_optimizer
from glyphrun.training.parallel import Workers


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message says at which step and with which learning rate."""


class TrainSettings(BaseModel):
    """How long and how a recognizer is trained. A step is one optimizer update over accumulate batches of batch_size.

    Workers that share a training share each batch: batch_size counts the items of all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1)
    frames_per_item: int = Field(2, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: int = Field(50, ge=0)
    schedule: Schedule = "cosine"
    clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    augment: AugmentSettings | None = AugmentSettings()
    evaluate_every: int = Field(200, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    snapshot_every: int | None = Field(None, ge=1)  # steps between copies that are kept, for votes of checkpoints
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What is known after some steps.

    seconds count training and evaluation over all runs of this training; train_loss is the mean since the last report;
    scores are those of ``Scores.to_json``.
    """

    step: int
    seconds: float
    train_loss: float
    scores: dict[str, Any]


def fit(
    recognizer: Recognizer,
    codec: Codec | SubwordCodec,
    processor: ImageProcessor,
    train: FrameArrays,
    evaluate: Callable[[Recognizer], Scores],
    settings: TrainSettings,
    checkpoint: Path,
    *,
    device: torch.device | None = None,
    precision: Precision | None = None,
    workers: Workers = Workers(),
    snapshot: Callable[[Recognizer, int], None] | None = None,
) -> Iterator[Report]:
    """Train, and yield a Report every ``evaluate_every`` steps and after the last.

    A complete checkpoint in the folder ``checkpoint`` is continued: its reports are yielded again first, so that whoever
    decides by them knows all of them. A run that was killed and continued ends with the weights of one left alone:
    dropout, augmentation and order of a step depend on seed, step and worker only. A checkpoint is written every
    ``checkpoint_every`` steps and before every new report. Every ``snapshot_every`` steps ``snapshot`` is called with the
    recognizer and the step, before the checkpoint of that step, so none is missing from a continued run.

    Several ``workers`` call this alike, each in a process of its own, and take their shares of every batch; the first
    evaluates and writes, all yield its reports, and all see its checkpoint folder. They stop together or not at all.
    Raises TrainingDiverged, OutOfMemory with the batch size that fits, ValueError for a batch too small to be shared.
    """
    device = device or default_device()
    precision = precision or default_precision(device)
    if min(settings.batch_size, len(train)) < workers.world:
        raise ValueError(
            f"a batch of {min(settings.batch_size, len(train))} items cannot be shared by {workers.world} workers: raise "
            "batch_size or take fewer workers"
        )
    recognizer.to(device).train()
    optimizer = make_optimizer(recognizer, settings.learning_rate, settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    order = TrainingOrder(train, settings.batch_size, settings.frames_per_item, settings.seed)
    step, seconds, loss_sum, loss_steps = 0, 0.0, 0.0, 0
    reports: list[dict[str, Any]] = []
    if find_checkpoint(checkpoint) is not None:
        progress = load_checkpoint(checkpoint, recognizer, optimizer)
        step, seconds = progress["step"], progress["seconds"]
        loss_sum, loss_steps = progress["loss_sum"], progress["loss_steps"]
        if progress["scaler"]:  # empty if the run began in another precision
            scaler.load_state_dict(progress["scaler"])
        reports = progress["reports"]
    if workers.broadcast(step, device) != step:
        raise CheckpointError(
            f"worker {workers.rank} does not see the first worker's checkpoint in {checkpoint}: put the run on storage "
            "that all machines share"
        )
    yield from (Report(**report) for report in reports)
    gradient = Gradient(
        recognizer,
        codec,
        processor,
        order,
        accumulate=settings.accumulate,
        augment=settings.augment,
        precision=precision,
        scaler=scaler,
        workers=workers,
    )
    while step < settings.steps:
        started = perf_counter()
        # Everything random in a step follows from seed, step and worker, so a continued run draws what an unbroken one drew.
        torch.manual_seed(workers.seed(settings.seed, step))
        loss = or_out_of_memory(
            partial(_update, recognizer, optimizer, gradient, settings, step),
            partial(batch_that_fits, gradient, optimizer, step),
        )
        step, loss_sum, loss_steps = step + 1, loss_sum + loss, loss_steps + 1
        due = step % settings.evaluate_every == 0 or step == settings.steps
        if due:
            report: dict[str, Any] = {}
            if workers.first:
                scores = or_out_of_memory(
                    partial(evaluate, recognizer),
                    lambda: "evaluation does not fit in memory beside training: choose a smaller recognizer",
                )
                recognizer.train()
                spent = seconds + perf_counter() - started
                report = asdict(Report(step, spent, loss_sum / loss_steps, scores.to_json()))
            reports = [*reports, workers.broadcast(report, device)]
            loss_sum, loss_steps = 0.0, 0
        seconds += perf_counter() - started
        if workers.first and snapshot and settings.snapshot_every and step % settings.snapshot_every == 0:
            snapshot(recognizer, step)
            recognizer.train()
        if workers.first and (due or step % settings.checkpoint_every == 0):
            progress = {
                "step": step,
                "seconds": seconds,
                "loss_sum": loss_sum,
                "loss_steps": loss_steps,
                "scaler": scaler.state_dict(),
                "reports": reports,
            }
            save_checkpoint(checkpoint, recognizer, optimizer, progress)
        if due:
            yield Report(**reports[-1])


def _update(
    recognizer: Recognizer,
    optimizer: torch.optim.Optimizer,
    gradient: Gradient,
    settings: TrainSettings,
    step: int,
) -> float:
    """One step of the optimizer; its loss."""
    rate = learning_rate_at(step, settings.steps, settings.learning_rate, settings.warmup, settings.schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = gradient.add(step)
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {step} with learning rate {rate:.3g}: lower the learning rate, lengthen the "
            "warm-up or train in float32"
        )
    scaler = gradient.scaler
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(recognizer.parameters(), settings.clip)
    # A scaler meets overflow by skipping the step; without one it would end in the weights.
    if not scaler.is_enabled() and not math.isfinite(norm):
        raise TrainingDiverged(
            f"the gradient is {float(norm)} at step {step} with learning rate {rate:.3g}: lower the learning rate or "
            "lengthen the warm-up"
        )
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss
