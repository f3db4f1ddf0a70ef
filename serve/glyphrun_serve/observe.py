"""Every request gets an id, a line in the log and its place in the metrics, whatever becomes of it."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glyphrun_serve.errors import failure_response
from glyphrun_serve.metrics import Metrics
from glyphrun_serve.request_ids import HEADER, current_request, request_id_of

Log = Callable[[dict[str, Any]], None]
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_LEFT = 499  # as nginx writes it: nobody is there to be told a status


def log_to_stderr(line: dict[str, Any]) -> None:
    print(json.dumps({"at": datetime.now(UTC).isoformat(), **line}, ensure_ascii=False), file=sys.stderr, flush=True)


class Observed:
    """ASGI middleware around everything else; it answers 500 where the app raised.

    named_outside: True where what calls this app puts the request id into the answer's header itself, as Serve's proxy does.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float], log: Log, named_outside: bool = False
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._named_outside = named_outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(HEADER))
        named = current_request.set(request_id)
        started, status, failure = self._clock(), CLIENT_LEFT, None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._named_outside:
                    MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            with self._metrics.in_flight():
                await self.app(scope, receive, send_named)
        except Exception as error:
            failure = "".join(traceback.format_exception(error))
            if status != CLIENT_LEFT:  # the answer has begun: only a broken connection says that it is not whole
                raise
            await failure_response()(scope, receive, send_named)
        finally:
            current_request.reset(named)
            seconds = self._clock() - started
            route = _route(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.answered(route, method, status, seconds)
            if route not in PROBES or status >= 400:
                self._log(
                    {
                        "request_id": request_id,
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "status": status,
                        "ms": round(seconds * 1e3, 3),
                        "asked_by": scope.get("asked_by"),
                        **({"failure": failure} if failure else {}),
                    }
                )


def _route(scope: Scope) -> str:
    """The pattern that the path matched, so that paths made up by a client make no series of their own."""
    return getattr(scope.get("route"), "path", None) or "none"
