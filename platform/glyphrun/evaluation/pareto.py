"""What no other beats: the front of several values at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pareto_front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """Names of the points that no other beats in one value without losing in another; of every value the larger is better."""
    return {
        name
        for name, point in points.items()
        if not any(
            all(theirs >= ours for theirs, ours in zip(other, point, strict=True)) and list(other) != list(point)
            for other in points.values()
        )
    }
