"""Processes of their own for what is to be killed in the middle of a training."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


def die_after(updates: int | None) -> None:
    """Have this process killed by its so-many-th update of weights from here; None: never."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == updates:
            os.kill(os.getpid(), signal.SIGKILL)

    if updates is not None:
        register_optimizer_step_post_hook(count)


def in_processes(target: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Exit codes of processes that run side by side, one for each call's arguments."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "torch._dynamo", "glyphrun.models.zoo", "glyphrun.training.fit"])
    started = [processes.Process(target=target, args=arguments) for arguments in calls]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]
