"""Items that wait are read together; one that cannot be read fails alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


class Batching(BaseModel):
    """At most ``most`` items are read together: those that came while the last batch was read.

    wait_s: how long an item waits for others where nothing is being read. That costs a lone client as much, and is worth
    it only where a batch takes hardly longer than an item.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: int = Field(default=16, gt=0)
    wait_s: float = Field(default=0.0, ge=0)


class Batcher(Generic[Item, Result]):
    """A queue before something that reads batches, in a thread of its own so that the event loop stays free."""

    def __init__(
        self,
        read: Callable[[list[Item]], Sequence[Result]],
        batching: Batching,
        kind: Callable[[Item], Hashable] = lambda item: None,
    ) -> None:
        """read: a batch in, the results in its order out; it is called from one thread alone.

        kind: items of different kinds are never in one batch. Whichever has waited longest is in the next one, so those of
        a kind that is asked for much keep no others waiting.
        """
        self._read = read
        self._batching = batching
        self._kind = kind
        self._thread = ThreadPoolExecutor(1, "read")
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._full = asyncio.Event()
        self._passed_over = False
        self._reading: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result of one item. Raises what reading that item alone raises."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if len(self._waiting) >= self._batching.most:
            self._full.set()
        if self._reading is None or self._reading.done():
            self._reading = loop.create_task(self._read_all())
        return await result

    async def between(self, ask: Callable[[], Answer]) -> Answer:
        """What another question to the same reader returns, asked between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, ask)

    async def _read_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # An item of another kind than the last batch's has waited for others already.
            if self._batching.wait_s and not self._passed_over:
                await self._gather()
            batch = self._next()
            if not batch:
                continue
            items = [item for item, _ in batch]
            results = await loop.run_in_executor(self._thread, read_apart, self._read, items)
            for (_, result), found in zip(batch, results, strict=True):
                if result.done():
                    continue
                if isinstance(found, Exception):
                    result.set_exception(found)
                else:
                    result.set_result(found)

    async def _gather(self) -> None:
        self._full.clear()
        if len(self._waiting) < self._batching.most:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._batching.wait_s)

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """The item that has waited longest and the next ones of its kind, without those that nobody waits for any more."""
        live = [waiting for waiting in self._waiting if not waiting[1].done()]
        first = self._kind(live[0][0]) if live else None
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        self._waiting.clear()
        self._passed_over = False
        for waiting in live:
            alike = self._kind(waiting[0]) == first
            if alike and len(batch) < self._batching.most:
                batch.append(waiting)
            else:
                self._passed_over |= not alike
                self._waiting.append(waiting)
        return batch


def read_apart(read: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> list[Result | Exception]:
    """The results of a batch, with an exception in the place of each item that cannot be read even alone.

    Halves of a batch that raises are read again, so one poisoned item among n costs about 2·log2(n) further readings.
    """
    try:
        return list(read(items))
    except Exception as error:  # whatever it is, the other items may be readable without this one
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return [*read_apart(read, items[:half]), *read_apart(read, items[half:])]
