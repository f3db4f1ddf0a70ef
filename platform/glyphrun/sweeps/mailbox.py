"""Reports on their way from the workers of a trial to Tune, in a process that starts without torch."""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """Reports on their way from the first worker to the trial, which answers each: go on, or stop."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.answers: asyncio.Queue[bool] = asyncio.Queue()
        self.unanswered = False

    async def send(self, report: dict[str, Any]) -> bool:
        await self.reports.put(report)
        return await self.answers.get()

    async def receive(self) -> dict[str, Any] | None:
        if self.unanswered:
            await self.answers.put(True)
        report = await self.reports.get()
        self.unanswered = report is not None
        return report

    async def stop(self) -> None:
        await self.answers.put(False)

    async def close(self) -> None:
        await self.reports.put(None)
