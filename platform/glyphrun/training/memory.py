"""Which batch fits when training runs out of memory: smaller ones are tried until one does."""

from __future__ import annotations

import torch

from glyphrun.memory import largest_that_fits
from glyphrun.training.gradient import Gradient


def batch_that_fits(gradient: Gradient, optimizer: torch.optim.Optimizer, step: int) -> str:
    """A sentence with the largest of the tried batches that fits, and how the step stays the same with it.

    Each is tried in two updates with a learning rate of zero, so the weights stay as they are: the second has the
    moments of the first beside it, and in both the gradient of one batch lies beside the passes of the next.
    """
    batch_size, accumulate = gradient.order.batch_size, gradient.accumulate
    workers = gradient.workers.world
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def attempt(items: int) -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            for _ in range(2):
                gradient.attempt(step, items)
            gradient.scaler.step(optimizer)
            gradient.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    optimizer.zero_grad(set_to_none=True)
    fits = largest_that_fits(attempt, smaller_batches(batch_size, workers))
    shared = f" over {workers} workers" if workers > 1 else ""
    if fits is None:
        least = f"{workers} items{shared}" if workers > 1 else "one item"
        return (
            f"not even a batch of {least} fits in memory: choose a smaller recognizer or smaller images, fewer "
            "frames_per_item, LoRA, or a machine with more memory"
        )
    return (
        f"a batch of {batch_size} items{shared} does not fit in memory, and one of {fits} does: set batch_size {fits} and "
        f"accumulate {accumulate * batch_size // fits} for the same {accumulate * batch_size} items a step"
    )


def smaller_batches(batch_size: int, workers: int) -> list[int]:
    """Divisors of a batch size, each at most half the one before, that leave every worker an item."""
    sizes: list[int] = []
    for size in range(batch_size // 2, workers - 1, -1):
        if batch_size % size == 0 and (not sizes or size <= sizes[-1] // 2):
            sizes.append(size)
    return sizes
