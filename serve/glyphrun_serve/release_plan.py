"""What gateways are told of a release under way, and what they tell of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from glyphrun_serve.comparison import Comparison
from glyphrun_serve.verdict import Bounds

Mode = Literal["canary", "shadow", "all"]


@dataclass(frozen=True)
class Plan:
    """Which application holds the challenger, a version, and what it is asked.

    canary: so many percent of the items that ask for no version; its failures are answered by the champion. shadow: a copy
    of each item, in the background. all: everything, while the champion is replaced. bounds: when it is given up.
    """

    application: str
    version: str
    mode: Mode
    percent: float = 0.0
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class Ended:
    """A plan that was given up, and why."""

    plan: Plan
    reason: str


@dataclass(frozen=True)
class Table:
    """The last word of the board. Its first words are number 0: there is no plan, or none that it still knows of.

    Later ones have higher numbers, also those of a board that comes after it. ended: how the last plan was given up, if it
    was.
    """

    revision: int = 0
    plan: Plan | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class News:
    """From a gateway: which table it follows, what it saw since its last news, and items that champion and challenger have.

    told: the last word of a board to it, for one that was started again and knows no plan.
    """

    gateway: str
    revision: int
    seen: Comparison
    told: Table = Table()
    champion_busy: int = 0
    challenger_busy: int = 0
