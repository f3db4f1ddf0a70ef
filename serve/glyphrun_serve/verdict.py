"""When a challenger is given up: bounds on its errors and its latency, and tests so that luck passes neither."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from glyphrun_serve.comparison import Comparison

PERCENT = 95


class Bounds(BaseModel):
    """How much worse than the champion a challenger may be.

    errors: by how much its share of failed items may be larger. latency_ms, slower: its 95th percentile may be up to
    latency_ms, or so many times the champion's if that is more. least: answers of each from which on latency is judged.
    luck: how likely what is seen may be for a challenger that keeps the bounds. It is judged again and again while counts
    grow, so it is small.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    errors: float = Field(default=0.01, ge=0, lt=1)
    latency_ms: float = Field(default=100.0, gt=0)
    slower: float = Field(default=1.5, ge=1)
    least: int = Field(default=50, gt=0)
    luck: float = Field(default=0.001, gt=0, lt=1)


def fault_of(seen: Comparison, bounds: Bounds) -> str | None:
    """Why a challenger is to be given up, as a sentence; None while it keeps the bounds or nobody can tell."""
    return _errors(seen, bounds) or _latency(seen, bounds)


def _errors(seen: Comparison, bounds: Bounds) -> str | None:
    """Fisher's exact test, one-sided: that it fails more often than the champion is not luck."""
    champion, challenger = seen.champion, seen.challenger
    if not (challenger.failed and champion.items):
        return None
    share, usual = challenger.failed / challenger.items, champion.failed / champion.items
    if share <= usual + bounds.errors:
        return None
    from scipy.stats import fisher_exact  # here, for it takes a second to import and most challengers never fail

    table = [[challenger.failed, challenger.answered], [champion.failed, champion.answered]]
    if fisher_exact(table, alternative="greater").pvalue >= bounds.luck:
        return None
    return (
        f"it failed on {challenger.failed:,} of {challenger.items:,} items, the champion on {champion.failed:,} of "
        f"{champion.items:,} (last: {challenger.reason})"
    )


def _latency(seen: Comparison, bounds: Bounds) -> str | None:
    """Binomial test, one-sided: that more than 5 % of its answers take longer than the limit is not luck."""
    champion, challenger = seen.champion, seen.challenger
    usual = champion.percentile(PERCENT)
    if usual is None or min(champion.answered, challenger.answered) < bounds.least:
        return None
    limit = max(bounds.latency_ms, bounds.slower * usual)
    slow, allowed = challenger.slower_than(limit), 1 - PERCENT / 100
    if slow <= allowed * challenger.answered:
        return None
    from scipy.stats import binomtest

    if binomtest(slow, challenger.answered, allowed, alternative="greater").pvalue >= bounds.luck:
        return None
    return (
        f"its 95th percentile is {challenger.percentile(PERCENT):.0f} ms and may be {limit:.0f} ms (the champion's is "
        f"{usual:.0f} ms)"
    )
