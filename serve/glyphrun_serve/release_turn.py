"""Who changes what a server serves has a turn, and whoever comes meanwhile waits for his."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError

from glyphrun_serve.serve_error import ServeError

NAME, NAMESPACE = "release-turn", "glyphrun"
LOOK_S = 0.5
START_S = 60.0  # on a machine that is busy, or a node that comes up first
# Whoever had it may have ended just now; of so many one after another none could start.
DEATHS = 5


class Turn:
    """Belongs to the process that started it, and goes with that process, however it ends."""

    def __init__(self, holder: str) -> None:
        self._holder = holder

    def holder(self) -> str:
        return self._holder


@contextmanager
def release_turn(say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process on this Ray has its turn, and take it. say: is told once that it waits.

    Raises ServeError if Ray does not answer or starts nothing.
    """
    turn = _taken(say)
    try:
        yield
    finally:
        with suppress(RayError):  # it has gone with its Ray
            ray.kill(turn)


def _taken(say: Callable[[str], None]) -> Any:
    this, told, deaths = uuid4().hex, False, 0
    # A name is known only as long as the actor lives, and only one process can have given it.
    options = ray.remote(Turn).options(name=NAME, namespace=NAMESPACE, get_if_exists=True, num_cpus=0)
    while True:
        try:
            turn: Any = options.remote(this)
            holder = ray.get(turn.holder.remote(), timeout=START_S)
        except (RayActorError, ValueError) as error:  # ValueError: it ended between being found and being asked for
            deaths += 1
            if deaths == DEATHS:
                raise ServeError(f"The server's Ray starts no process for this release: {error}") from None
        except RayError as error:
            raise ServeError(f"The server's Ray does not answer: {error}") from None
        else:
            if holder == this:
                return turn
            deaths = 0
            if not told:
                say("Another process changes what the server serves: waiting until it has ended")
                told = True
        sleep(LOOK_S)
