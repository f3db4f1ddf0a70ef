"""The board as a Ray actor that all gateways of a cluster find by its name, and how they ask it."""

from __future__ import annotations

import asyncio
from time import monotonic, time_ns
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from glyphrun_serve.release_board import Board, Status
from glyphrun_serve.release_plan import News, Plan, Table

NAME, NAMESPACE = "release-board", "glyphrun"
ANSWER_S = 2.0
# A gateway asks every half second, and what it had sent to the challenger has its deadline.
FOLLOWED_S = 5.0


class ReleaseBoard:
    """A thin shell over the board, which also removes the application of a challenger that was given up."""

    def __init__(self) -> None:
        import scipy.stats  # noqa: F401  # a second, in which gateways would take the board for dead when it is first needed

        self._board = Board(start=time_ns())
        self._removals: set[asyncio.Task[None]] = set()

    async def exchange(self, news: News) -> Table:
        given_up = self._board.status(monotonic()).ended
        table = self._board.exchange(news, monotonic())
        ended = self._board.status(monotonic()).ended
        if ended is not None and ended is not given_up:
            task = asyncio.create_task(self._remove(ended.plan.application))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)
        return table

    async def post(self, plan: Plan | None, instead_of: Plan | None = None) -> Table | None:
        return self._board.post(plan, instead_of)

    @ray.method(max_task_retries=-1)
    async def status(self) -> Status:
        return self._board.status(monotonic())

    async def _remove(self, application: str) -> None:
        await asyncio.sleep(FOLLOWED_S)
        plan = self._board.status(monotonic()).table.plan
        if plan is None or plan.application != application:  # it may have been given another chance meanwhile
            await asyncio.to_thread(serve.delete, application, False)


def board_for_release() -> Any:
    """The board of this cluster, which is started if there is none; it outlives who starts it."""
    options = ray.remote(ReleaseBoard).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1
    )
    return options.remote()


def known_board() -> Any:
    """The board, None if there is none."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


class BoardLine:
    """How a gateway asks the board: it finds it by itself, and takes silence for an answer."""

    def __init__(self) -> None:
        self._board: Any = None

    async def exchange(self, news: News) -> Table | None:
        if self._board is None:
            self._board = await asyncio.to_thread(known_board)
        if self._board is None:
            return None
        answer = self._board.exchange.remote(news)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except (RayError, TimeoutError):
            self._board = None
            return None
