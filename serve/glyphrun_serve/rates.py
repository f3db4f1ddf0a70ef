"""How many requests each client may make."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

MOST_CLIENTS = 10_000


class Rate(BaseModel):
    """A client may make `burst` requests at once, and per_second for as long as it likes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_second: float = Field(default=100.0, gt=0)
    burst: int = Field(default=200, gt=0)


class Buckets:
    """A token bucket for each client; those not seen for the longest time are forgotten first."""

    def __init__(self, rate: Rate, clock: Callable[[], float], most: int = MOST_CLIENTS) -> None:
        self._rate = rate
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at this time

    def wait_s(self, client: str) -> float:
        """0 if the client may make a request now, which is then counted; else the seconds until it may."""
        now = self._clock()
        left, since = self._buckets.pop(client, (float(self._rate.burst), now))
        left = min(float(self._rate.burst), left + (now - since) * self._rate.per_second)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate.per_second
