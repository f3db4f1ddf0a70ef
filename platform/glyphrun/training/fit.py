"""Training of one recognizer, as a generator of reports: whoever runs it decides whether it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from glyphrun.data.batches import FrameArrays, TrainingOrder
from glyphrun.device import Precision, autocast, default_device, default_precision
from glyphrun.evaluation.evaluate import Scores
from glyphrun.images import ImageProcessor
from glyphrun.models.recognizer import Recognizer
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec
from glyphrun.training.augment import AugmentSettings, augment
from glyphrun.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from glyphrun.training.optim import Schedule, learning_rate_at, make_optimizer


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message says at which step and with which learning rate."""


class TrainSettings(BaseModel):
    """How long and how a recognizer is trained. A step is one optimizer update over accumulate batches of batch_size."""

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
) -> Iterator[Report]:
    """Train, and yield a Report every ``evaluate_every`` steps and after the last.

    A complete checkpoint in the folder ``checkpoint`` is continued: its reports are yielded again first, so that whoever
    decides by them knows all of them. A run that was killed and continued ends with the weights of one left alone:
    dropout, augmentation and order of a step depend on seed and step only. A checkpoint is written every
    ``checkpoint_every`` steps and before every new report. Raises TrainingDiverged.
    """
    device = device or default_device()
    precision = precision or default_precision(device)
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
        yield from (Report(**report) for report in reports)
    while step < settings.steps:
        started = perf_counter()
        # Everything random in a step follows from seed and step, so a continued run draws what an unbroken one drew.
        torch.manual_seed((settings.seed * 1_000_003 + step) % 2**63)
        rate = learning_rate_at(step, settings.steps, settings.learning_rate, settings.warmup, settings.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = 0.0
        for part in range(settings.accumulate):
            loss += _accumulate(recognizer, codec, processor, order, step, part, settings, device, precision, scaler)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss} at step {step} with learning rate {rate:.3g}: lower the learning rate, lengthen the "
                "warm-up or train in float32"
            )
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
        step, loss_sum, loss_steps = step + 1, loss_sum + loss, loss_steps + 1
        due = step % settings.evaluate_every == 0 or step == settings.steps
        if due:
            scores = evaluate(recognizer)
            recognizer.train()
            spent = seconds + perf_counter() - started
            reports = [*reports, asdict(Report(step, spent, loss_sum / loss_steps, scores.to_json()))]
            loss_sum, loss_steps = 0.0, 0
        seconds += perf_counter() - started
        if due or step % settings.checkpoint_every == 0:
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


def _accumulate(
    recognizer: Recognizer,
    codec: Codec | SubwordCodec,
    processor: ImageProcessor,
    order: TrainingOrder,
    step: int,
    part: int,
    settings: TrainSettings,
    device: torch.device,
    precision: Precision,
    scaler: torch.amp.GradScaler,
) -> float:
    """One forward and backward pass; the loss of the batch, as its share of the step's."""
    frames, mask, sizes, texts = order.batch(step * settings.accumulate + part)
    frames, mask, sizes = frames.to(device), mask.to(device), sizes.to(device)
    if settings.augment is not None:
        frames[mask] = augment(frames[mask], settings.augment)
    targets = codec.encode_batch(texts).to(device)
    if not recognizer.reads_frames_together:
        targets = targets.repeat_interleave(mask.sum(1), dim=0)  # each frame is an item of its own
    with autocast(device, precision):
        memory = recognizer.encode(processor.normalise(frames), mask, sizes)
        loss = recognizer.loss(memory, targets) / settings.accumulate
    scaler.scale(loss).backward()
    return float(loss.detach())
