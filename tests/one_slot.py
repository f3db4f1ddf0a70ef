"""Half of a Ray's two processors, for sweeps that need no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from glyphrun.sweeps.mailbox import Mailbox


@contextmanager
def one_slot() -> Iterator[None]:
    """Trials come in turn, in one process; a second would import torch for five seconds first."""
    holder = ray.remote(num_cpus=1)(Mailbox).remote()  # any actor will do
    ray.get(holder.close.remote())
    try:
        yield
    finally:
        ray.kill(holder)
