"""Who changes what a server serves has a turn, and whoever comes meanwhile waits for his."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError

NAME, NAMESPACE = "release-turn", "glyphrun"
LOOK_S = 0.5


class Turn:
    """Belongs to the process that started it, and goes with that process, however it ends."""

    def __init__(self, holder: str) -> None:
        self._holder = holder

    def holder(self) -> str:
        return self._holder


@contextmanager
def release_turn(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process on this Ray has its turn, and take it. say: is told once that it waits."""
    turn = _taken(say)
    try:
        yield
    finally:
        ray.kill(turn)


def _taken(say: Callable[[str], None]) -> Any:
    this, told = uuid4().hex, False
    # A name is known only as long as the actor lives, and only one process can have given it.
    options = ray.remote(Turn).options(name=NAME, namespace=NAMESPACE, get_if_exists=True, num_cpus=0)
    while True:
        with suppress(RayActorError):  # whoever had it has just ended
            turn: Any = options.remote(this)
            if ray.get(turn.holder.remote()) == this:
                return turn
        if not told:
            say("Another process changes what the server serves: waiting until it has ended")
            told = True
        sleep(LOOK_S)
