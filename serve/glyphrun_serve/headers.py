"""Headers that Serve reads before the gateway does: such that no client breaks it with them, or gives it orders.

Serve decodes some headers as UTF-8 where it takes a request in, and answers 500 itself where one is not.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from glyphrun_serve.request_ids import HEADER, is_sane

# Serve calls ``middlewares`` wherever it takes requests in, if this variable says so where its processes are started.
VARIABLE, VALUE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{__name__}.middlewares"

ORDERS = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id"})
_ID = HEADER.lower().encode()

RawHeaders = list[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """What Serve is to put around whatever answers."""
    return [Middleware(ReadableHeaders)]


class ReadableHeaders:
    """ASGI middleware that passes on no header on which Serve would fail."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": readable(scope["headers"])}
        await self.app(scope, receive, send)


def readable(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Raw headers in UTF-8, without orders to Serve, and with an id that can stand in an answer and a log or with none."""
    given = [(name.lower(), value) for name, value in headers]
    ids = [value for name, value in given if name == _ID]
    named = len(ids) == 1 and is_sane(ids[0].decode("latin-1"))
    return [(name, _in_utf8(value)) for name, value in given if name not in ORDERS and (name != _ID or named)]


def _in_utf8(value: bytes) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1").encode()  # what such a byte meant before headers were UTF-8
    return value
