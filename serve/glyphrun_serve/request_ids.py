"""A name for each request, by which an answer, an error and a line of the log are found together."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# Of the task that answers a request, for errors that are made far from it.
current_request: ContextVar[str | None] = ContextVar("current_request", default=None)


def request_id_of(given: str | None) -> str:
    """The id that a client gave if it can stand in a header and a log as it is, else a new one."""
    return given if given and is_sane(given) else uuid4().hex


def is_sane(given: str) -> bool:
    """Whether an id can stand in a header and a log as it is."""
    return _SANE.fullmatch(given) is not None
