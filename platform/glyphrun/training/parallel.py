"""Several processes that train one recognizer: who takes which items, and what they tell each other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


@dataclass(frozen=True)
class Workers:
    """One of ``world`` processes that share a training, all in torch.distributed's default group; alone by default.

    ``total`` and ``broadcast`` wait for the others: all workers call them, in the same order.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the one that evaluates and writes."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """Which of a batch's items this worker takes; shares differ by at most one item.

        Neighbours go to different workers, so that items sorted by width are as much work for each.
        """
        return slice(self.rank, items, self.world)

    def seed(self, seed: int, step: int) -> int:
        """What everything random in a step of this worker follows from."""
        return (seed * 1_000_003 + step + self.rank * 0x9E3779B97F4A7C15) % 2**63

    def total(self, value: float, device: torch.device) -> float:
        """The sum of all workers' values."""
        if self.world == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(summed)
        return float(summed)

    def broadcast(self, value: Value, device: torch.device) -> Value:
        """The first worker's value."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=device)
        return box[0]


def reduce_gradients(objective: nn.Module, workers: Workers, device: torch.device) -> nn.Module:
    """The objective with gradients that are means over all workers, and the first worker's weights to begin with.

    On GPUs batch norm takes the statistics of all shares together. On processors torch has no such norm: each worker
    norms by its own share, and the first worker's running statistics count. Draw shares of a few dozen frames there.
    """
    if workers.world == 1:
        return objective
    if device.type == "cuda":
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    # What a batch uses depends on it: a single frame needs no fusion.
    return DistributedDataParallel(objective, find_unused_parameters=True, gradient_as_bucket_view=True)


def exchange(objective: nn.Module, now: bool) -> AbstractContextManager[object]:
    """The context of a forward and backward pass after which workers exchange gradients, or go on adding to their own."""
    if now or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()
