"""What all gateways of a server are told of a release, and what they saw of it together. Knows nothing of Ray."""

from __future__ import annotations

from dataclasses import dataclass

from glyphrun_serve.comparison import Comparison
from glyphrun_serve.release_plan import Ended, News, Plan, Table
from glyphrun_serve.verdict import fault_of

# A gateway that has told no news for so long has gone.
GONE_S = 3.0


@dataclass(frozen=True)
class Status:
    """gateways: the last news of each that is there."""

    table: Table
    seen: Comparison
    gateways: list[News]

    @property
    def ended(self) -> Ended | None:
        """How the last release was given up, if it was."""
        return self.table.ended


class Board:
    """Holds the plan and gives it up by itself when the challenger passes its bounds.

    One that was started again takes the plan from the gateways; only what they had seen before is forgotten.
    """

    def __init__(self, start: int = 0) -> None:
        """start: what the numbers of its words are above; higher than those of all boards before it."""
        self._start = start
        self._table = Table()
        self._decides = False
        self._seen = Comparison()
        self._gateways: dict[str, tuple[float, News]] = {}

    def post(self, plan: Plan | None, instead_of: Plan | None = None) -> Table | None:
        """The table from now on, with nothing seen yet. None, and nothing changes, if what it is to follow was given up."""
        if instead_of is not None and self._table.revision and self._table.plan != instead_of:
            return None
        self._decide(plan)
        self._seen = Comparison()
        return self._table

    def exchange(self, news: News, now: float) -> Table:
        """Take a gateway's news and say what it is to follow; now: seconds that never go back."""
        self._gateways[news.gateway] = now, news
        if not self._decides and news.told.revision > self._table.revision:
            self._table = news.told
        plan = self._table.plan
        # What was seen under another table says nothing of this plan.
        if plan is None or news.revision != self._table.revision:
            return self._table
        self._seen.add(news.seen)
        fault = None if plan.mode == "all" else fault_of(self._seen, plan.bounds)
        if fault:
            self._decide(None, Ended(plan, fault))
        return self._table

    def status(self, now: float) -> Status:
        self._gateways = {name: told for name, told in self._gateways.items() if now - told[0] < GONE_S}
        return Status(self._table, self._seen, [news for _, news in self._gateways.values()])

    def _decide(self, plan: Plan | None, ended: Ended | None = None) -> None:
        self._table, self._decides = Table(max(self._table.revision, self._start) + 1, plan, ended), True
