"""How long a stage took."""

from time import perf_counter


def milliseconds_since(started: float) -> float:
    """started: what ``perf_counter`` said."""
    return (perf_counter() - started) * 1e3
