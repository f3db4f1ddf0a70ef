"""Who of an ensemble is waited for: members are asked side by side, and an answer does without those that fail it.

Knows nothing of Ray: how a member is asked is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

from glyphrun.members import EnsembleSettings, Reading
from glyphrun.prediction import Prediction
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.models import Failed, Unreadable

# How long the replicas of a member that are left have for an answer after one died, before it is given up.
GRACE_S = 1.0
# How often those who wait for a member look whether others have given it up.
LOOK_S = 0.1
LATE = "late"
LOST = "failed: its replicas do not answer"

Ask = Callable[[str], Awaitable[Prediction | Failed | Unreadable]]
Asked = asyncio.Task[Reading | Unreadable]


class Panel:
    """The members of an ensemble, and which of them are lost.

    A member with a deadline is waited for until it has passed. Any other is waited for until a quorum has answered and it
    is lost or has taken patience_s. It is lost from then on, or from GRACE_S after one of its replicas died, until it
    answers again; meanwhile one item at a time is left with it in the background, and the others do without it.
    """

    def __init__(self, members: Sequence[str], settings: EnsembleSettings, patience_s: float) -> None:
        self._members = tuple(members)
        self._settings = settings
        self._patience_s = patience_s
        self._lost: dict[str, float] = {}  # since when, by perf_counter
        self._left: dict[str, Asked] = {}

    def died(self, member: str) -> None:
        """To be told when a replica of a member died."""
        self._lost.setdefault(member, perf_counter() + GRACE_S)

    async def readings(self, ask: Ask) -> dict[str, Reading] | Unreadable:
        """What each member says of an item, in their order; Unreadable if that is what any of them finds it.

        Deadlines count from here on, so that they hold for whatever delays an answer.
        """
        started = perf_counter()
        asked: dict[str, Asked] = {}
        try:
            found = await self._answers(asked, ask, started)
        except BaseException:
            for task in asked.values():
                task.cancel()
            raise
        for name, task in asked.items():
            if not task.done():
                self._leave(name, task)
        if isinstance(found, Unreadable):
            return found
        return {name: found.get(name) or Reading(None, None, self._excuse(name)) for name in self._members}

    async def _ask(self, name: str, ask: Ask, started: float) -> Reading | Unreadable:
        try:
            found = await ask(name)
        except Exception as error:  # whatever it is, the others can answer without this member
            return Reading(None, milliseconds_since(started), f"failed: {str(error) or type(error).__name__}")
        self._lost.pop(name, None)
        if isinstance(found, Unreadable):
            return found
        ms = milliseconds_since(started)
        if isinstance(found, Failed):
            return Reading(None, ms, f"failed: {found.message}")
        deadline_ms = self._settings.deadline_ms.get(name)
        if deadline_ms is not None and ms > deadline_ms:
            return Reading(None, ms, LATE)
        return Reading([found], ms, "voted")

    async def _answers(self, asked: dict[str, Asked], ask: Ask, started: float) -> dict[str, Reading] | Unreadable:
        """Those that came in time; a member that has been left an item is asked only if the others are too few."""
        names = [name for name in self._members if name not in self._left]
        while True:
            asked.update(
                (name, asyncio.create_task(self._ask(name, ask, started))) for name in names if name not in asked
            )
            found: dict[str, Reading] = {}
            for name, task in asked.items():
                if task.done():
                    said = task.result()
                    if isinstance(said, Unreadable):
                        return said
                    found[name] = said
            heard = sum(reading.predictions is not None for reading in found.values())
            enough = heard >= self._settings.quorum
            if len(asked) < len(self._members) and heard + len(asked) - len(found) < self._settings.quorum:
                names = list(self._members)
                continue
            now = perf_counter()
            ends = {name: self._end(name, started, enough) for name in asked if name not in found}
            waits = [end - now for end in ends.values() if end > now]
            if not waits:
                return found
            pending = [asked[name] for name in ends]
            timeout = min([*waits, LOOK_S]) if enough else min(waits)
            await asyncio.wait(
                pending, timeout=None if timeout == float("inf") else timeout, return_when=asyncio.FIRST_COMPLETED
            )

    def _end(self, name: str, started: float, enough: bool) -> float:
        """Until when a member is waited for."""
        deadline_ms = self._settings.deadline_ms.get(name)
        if deadline_ms is not None:
            return started + deadline_ms / 1e3
        if not enough:
            return float("inf")
        return min(started + self._patience_s, self._lost.get(name, float("inf")))

    def _leave(self, name: str, task: Asked) -> None:
        """What is late by its own deadline is dropped; an item that a lost member has may show that it is back."""
        if name in self._settings.deadline_ms or name in self._left:
            task.cancel()
            return
        self._lost.setdefault(name, perf_counter())
        self._left[name] = task
        task.add_done_callback(lambda _: self._left.pop(name, None))

    def _excuse(self, name: str) -> str:
        return LOST if name in self._lost else LATE
