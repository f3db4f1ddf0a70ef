"""torchao tells of its own deprecated calls while it is imported, to people who called none of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torchao_notices() -> Iterator[None]:
    """For imports that import torchao: its own, and those of peft and transformers where it is installed."""
    deprecations = logging.getLogger("torch.utils._pytree")
    level = deprecations.level
    deprecations.setLevel(logging.ERROR)
    try:
        yield
    finally:
        deprecations.setLevel(level)
