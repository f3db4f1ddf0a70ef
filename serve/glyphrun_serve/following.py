"""A gateway keeps to what the board says of a release: it tells what it saw, and is told what holds. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn
from uuid import uuid4

from glyphrun_serve.models import Model
from glyphrun_serve.release_plan import News, Plan, Table
from glyphrun_serve.traffic import Traffic

EVERY_S = 0.5

logger = logging.getLogger(__name__)

Exchange = Callable[[News], Awaitable[Table | None]]
Meet = Callable[[Plan], Awaitable[Sequence[Model]]]


class Follower:
    """exchange: the board's answer to news, None where there is no board or it says nothing.

    meet: the challenger of a plan, and after it the same with each of its adapters.
    """

    def __init__(self, traffic: Traffic, exchange: Exchange, meet: Meet) -> None:
        self._traffic = traffic
        self._exchange = exchange
        self._meet = meet
        self._name = uuid4().hex
        self._table = self._told = Table()
        self._challenger: Sequence[Model] = ()
        self._met: str | None = None

    async def look(self) -> None:
        """Follow what the board says now. Without its word the champion alone reads, until the board is heard again.

        But if everything goes to the challenger, because the champion is being replaced, that lasts until it says otherwise.
        """
        traffic = self._traffic
        news = News(
            self._name,
            self._table.revision,
            traffic.take_seen(),
            self._told,
            traffic.champion_busy,
            traffic.challenger_busy,
        )
        table = await self._exchange(news) or Table()
        if table.revision:
            self._told = table
        held = self._table.plan
        if table == self._table or (table.revision == 0 and held is not None and held.mode == "all"):
            return
        if table.plan is None:
            self._challenger, self._met = (), None
        elif table.plan.application != self._met:
            try:
                self._challenger = await self._meet(table.plan)
            except Exception as error:  # whatever it is, the champion reads on
                logger.warning("The challenger %s cannot be asked: %r", table.plan.application, error)
                return
            self._met = table.plan.application
        if self._challenger:
            traffic.follow(table.plan, *self._challenger)
        else:
            traffic.follow(None, None)
        self._table = table

    async def follow(self) -> NoReturn:
        """Look again and again."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except Exception:
                logger.exception("the release under way cannot be followed")
