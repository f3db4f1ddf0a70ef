"""A Ray for one command, quiet, that ends with the command however it ends."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from glyphrun.device import available_cores

OBJECT_STORE_BYTES = 1_500_000_000


@contextmanager
def ray_for_command() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, else a Ray of this machine's cores; SIGTERM ends both like Ctrl-C."""
    # What a person waits for is shown by our own bars; Ray's commentary would tear them apart.
    for name in ("ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What fails in a trial is told in a sentence when the others have ended; Tune would print its traceback at once.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler would only ask a sweep to wind down; it ends at once and goes on later from what is on disk.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Trials need a core each and a sweep at least two of them, if need be by turns.
    cores = max(available_cores(), 2)
    own = not os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            num_cpus=cores if own else None,
            include_dashboard=False if own else None,
            object_store_memory=OBJECT_STORE_BYTES if own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        with interruptible():  # after Ray has set a handler of its own, which aborts
            yield
    finally:
        ray.shutdown()


def gpus() -> int:
    """How many GPUs a process of this machine takes: one where there is one."""
    return int(torch.cuda.is_available())


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in this scope as SIGINT does, so that a polite kill cleans up like Ctrl-C.

    SIGINT is set too: a shell starts background commands with it ignored.
    """
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_interrupt() -> None:
    """Return at Ctrl-C or SIGTERM."""
    with interruptible():
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
