"""What is wrong with what somebody declared, in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

KIND = ":"  # begins the name of an alternative of a union, which is no key of what was declared


class ExperimentError(ValueError):
    """A declaration that cannot be used, with the file, the key and what to do."""


def nearest(key: str, known: Iterable[str]) -> str:
    """``: did you mean …?`` with the known key that is most like another, or nothing."""
    near = get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ""


def last_words(error: object) -> str:
    """The last line of an error that came from another process, without the classes that Ray and Python write before it."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^([A-Za-z_][\w.]*(Error|Exception|Failed|Diverged)(\(\w+\))?: )+", "", lines[-1]) if lines else ""


def said(error: ValidationError, known: Iterable[str]) -> str:
    """The first thing that is wrong: where, what, and the nearest known key."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if not str(part).startswith(KIND)]
    place = ".".join(keys) or "the file"
    if first["type"] == "extra_forbidden":
        return f"unknown key {keys[-1]!r} at {place}{nearest(keys[-1], known)}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"
