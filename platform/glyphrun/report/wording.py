"""How the report writes numbers and readings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

ABSENT = "–"


def finite(value: object) -> float | None:
    """The number, or None for what is absent, infinite or not a number."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def percent(value: object, digits: int = 1) -> str:
    """``0.953`` as ``95.3 %``, with a space that no line breaks at."""
    number = finite(value)
    return ABSENT if number is None else f"{100 * number:.{digits}f}\u00a0%"


def stated_percent(share: float) -> str:
    """A share that somebody stated, with the digits that it was stated with: ``0.98`` as ``98 %``."""
    return f"{100 * share:.6g}\u00a0%"


def percent_range(ends: Sequence[float] | None) -> str:
    """A 95 % confidence interval, ``93.8 to 96.6``, in per cent."""
    low, high = (finite(end) for end in ends) if ends else (None, None)
    return ABSENT if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def milliseconds(value: object) -> str:
    number = finite(value)
    return ABSENT if number is None else f"{number:.3g}\u00a0ms"


def duration(seconds: object) -> str:
    """``512`` as ``8 min 32 s``."""
    number = finite(seconds)
    if number is None:
        return ABSENT
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(value: object) -> str:
    """A number with its thousands apart: ``1 234 567``."""
    number = finite(value)
    return ABSENT if number is None else f"{number:,.0f}".replace(",", "\u202f")


def magnitude(value: object) -> str:
    """``412000`` as ``412 k``."""
    number = finite(value)
    if number is None:
        return ABSENT
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def mebibytes(value: object) -> str:
    """``5060`` as ``4.94 GiB``."""
    number = finite(value)
    if number is None:
        return ABSENT
    return f"{number / 1024:.3g}\u00a0GiB" if number >= 1000 else f"{number:.3g}\u00a0MiB"


def rate(value: object) -> str:
    """So many a second, small ones with two digits."""
    number = finite(value)
    return ABSENT if number is None else count(number) if number >= 10 else f"{number:.2g}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def setting(value: object) -> str:
    """A sampled value, floats with three significant digits."""
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def moment(iso: object) -> str:
    """An ISO time as ``14 May 2026, 09:30 UTC``; other text as it stands, a dash for None."""
    if iso is None:
        return ABSENT
    try:
        time = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def reading_text(text: str) -> str:
    """A reading as it stands, and words for the empty one."""
    return text or "not readable"
