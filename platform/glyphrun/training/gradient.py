"""The gradient of an update: its batches, forward and backward, alone or as one of several workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from glyphrun.data.batches import TrainingOrder
from glyphrun.device import Precision, autocast
from glyphrun.images import ImageProcessor
from glyphrun.models.recognizer import Recognizer
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec
from glyphrun.training.augment import AugmentSettings, augment
from glyphrun.training.parallel import Workers, exchange, reduce_gradients


@runtime_checkable
class CountsTerms(Protocol):
    """A recognizer whose loss is a mean over something else than the tokens after begin."""

    def loss_terms(self, targets: Tensor) -> Tensor:
        """How many terms the loss of these targets is a mean of."""


def loss_terms(recognizer: Recognizer, targets: Tensor, pad: int) -> int:
    """How many terms a recognizer's loss of some targets, (B, L) long, is a mean of."""
    terms = recognizer.loss_terms(targets) if isinstance(recognizer, CountsTerms) else (targets[:, 1:] != pad).sum()
    return int(terms)


class Objective(nn.Module):
    """Encoder and loss in one forward pass, which is where DistributedDataParallel listens for gradients."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, frames: Tensor, mask: Tensor, sizes: Tensor, targets: Tensor) -> Tensor:
        return self.recognizer.loss(self.recognizer.encode(frames, mask, sizes), targets)


@dataclass(frozen=True)
class Share:
    """What one worker takes of a batch.

    frames: (B, T, 3, H, W) uint8, mask: (B, T) bool, sizes: (B, T, 2) long, targets: (rows of the loss, L) long; weight:
    what its mean loss contributes to the mean over the whole batch.
    """

    frames: Tensor
    mask: Tensor
    sizes: Tensor
    targets: Tensor
    weight: float


class Gradient:
    """Adds to the parameters' gradients what the batches of an update say."""

    def __init__(
        self,
        recognizer: Recognizer,
        codec: Codec | SubwordCodec,
        processor: ImageProcessor,
        order: TrainingOrder,
        *,
        accumulate: int,
        augment: AugmentSettings | None,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        workers: Workers,
    ) -> None:
        self.recognizer, self.codec, self.processor, self.order = recognizer, codec, processor, order
        self.accumulate, self.augment = accumulate, augment
        self.precision, self.scaler, self.workers = precision, scaler, workers
        self.device = next(recognizer.parameters()).device
        self.objective = reduce_gradients(Objective(recognizer), workers, self.device)

    def add(self, step: int) -> float:
        """Forward and backward passes of a step; its loss, the mean over batches, each a mean over all workers' items."""
        parts = range(self.accumulate)
        loss = sum(self._add(self._share(step, part), exchange_now=part == parts[-1]) for part in parts)
        return self.workers.total(loss, self.device)

    def attempt(self, step: int, items: int) -> None:
        """The passes of a batch of that many items, in which this worker waits for no other."""
        if not isinstance(self.objective, Objective):
            self.objective = Objective(self.recognizer)  # the one that listened for gradients is gone
            for module in self.recognizer.modules():
                if isinstance(module, nn.SyncBatchNorm):
                    module.eval()
        self._add(self._share(step, 0, items), exchange_now=False)

    def _add(self, share: Share, exchange_now: bool) -> float:
        with exchange(self.objective, exchange_now):
            with autocast(self.device, self.precision):
                pixels = self.processor.normalise(share.frames)
                loss = self.objective(pixels, share.mask, share.sizes, share.targets)
                loss = loss * (share.weight / self.accumulate)
            # The exchange takes the mean over workers; their weights make up a sum.
            self.scaler.scale(loss * self.workers.world).backward()
        return float(loss.detach())

    def _share(self, step: int, part: int, items: int | None = None) -> Share:
        """This worker's share of a batch, or of the first items of it."""
        frames, mask, sizes, texts = self.order.batch(step * self.accumulate + part)
        rows = self.workers.share(len(texts) if items is None else items)
        targets = self.codec.encode_batch(texts)
        weight = 1.0
        if self.workers.world > 1:
            weight = self._terms(targets[rows], mask[rows]) / self._terms(targets, mask)
        frames, mask, sizes = (values[rows].to(self.device) for values in (frames, mask, sizes))
        if self.augment is not None:
            frames[mask] = augment(frames[mask], self.augment)
        return Share(frames, mask, sizes, self._of_readings(targets[rows].to(self.device), mask), weight)

    def _of_readings(self, targets: Tensor, mask: Tensor) -> Tensor:
        """targets: (B, L) of items → (rows, L) of what is read: items, or each of their frames."""
        return targets if self.recognizer.reads_frames_together else targets.repeat_interleave(mask.sum(1), dim=0)

    def _terms(self, targets: Tensor, mask: Tensor) -> int:
        return loss_terms(self.recognizer, self._of_readings(targets, mask), self.codec.pad)
