"""A Ray for one command, quiet, that ends with the command however it ends."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray

OBJECT_STORE_BYTES = 1_500_000_000


@contextmanager
def ray_for_command() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, else a Ray of this machine's cores; SIGTERM ends both like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    # What a person waits for is shown by our own bars; Ray's commentary would tear them apart.
    for name in ("ray.data", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler would only ask a sweep to wind down; it ends at once and goes on later from what is on disk.
    os.environ.setdefault("TUNE_DISABLE_SIGNAL_HANDLER", "1")
    # Trials need a core each and a sweep at least two of them, if need be by turns.
    cores = max(len(os.sched_getaffinity(0)), 2)
    own = not os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            num_cpus=cores if own else None,
            include_dashboard=False if own else None,
            object_store_memory=OBJECT_STORE_BYTES if own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
