"""Who may ask, and how often."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from math import ceil
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from glyphrun_serve.errors import RequestError, error_response
from glyphrun_serve.rates import Buckets, Rate
from glyphrun_serve.tokens import HOW_TO_MAKE_ONE, KnownToken, TokensError, holder, known_tokens

# What says nothing of the model or its clients: probes carry no token, nor does a browser that opens the page.
OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
OPEN_BELOW = "/static/"


@dataclass(frozen=True)
class Guard:
    """Without tokens only clients on this machine are answered, unless anyone may ask; rate: None, no limit."""

    tokens: tuple[KnownToken, ...] = ()
    rate: Rate | None = None
    anyone: bool = False


class Access(BaseModel):
    """tokens: a file of `NAME:HASH` lines, beside those of the environment variable GLYPHRUN_TOKENS.

    rate: for each token, or each address where there are none; with tokens it is 100 a second where nothing is said.
    anyone: True if what stands before this server decides who may ask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Path | None = None
    rate: Rate | None = None
    anyone: bool = False

    def guard(self) -> Guard:
        """What is to be checked, with the tokens of now. Raises TokensError."""
        tokens = known_tokens(self.tokens, os.environ)
        return Guard(tokens, self.rate or (Rate() if tokens else None), self.anyone)

    def by_address(self, host: str) -> bool:
        """Whether clients of this host can be told apart only by where they ask from. Raises TokensError."""
        return not (self.guard().tokens or host == "localhost" or _is_loopback(host))

    def check_host(self, host: str) -> None:
        """Raises TokensError if others could reach this host and no token is known."""
        if self.by_address(host) and not self.anyone:
            raise TokensError(f"{host} can be reached from elsewhere, and no token is known: {HOW_TO_MAKE_ONE}.")


class Gate:
    """ASGI middleware that answers 429 to a client that asks too often and 401 to one that may not ask."""

    def __init__(self, app: ASGIApp, guard: Guard, clock: Callable[[], float]) -> None:
        self.app = app
        self._guard = guard
        self._buckets = Buckets(guard.rate, clock) if guard.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["path"].startswith(OPEN_BELOW):
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        token = holder(self._guard.tokens, Headers(scope=scope).get("authorization"))
        scope["asked_by"] = token.name if token else address
        # Counted before it is refused, so that guessing tokens is slow too.
        wait = self._buckets.wait_s(f"token {token.name}" if token else address) if self._buckets else 0.0
        if wait:
            message = f"Too many requests; the next is answered in {wait:.2g} s."
            refused = _refused(429, "too_many_requests", message, {"Retry-After": str(ceil(wait))})
        elif token is None and self._guard.tokens:
            message = "The request bears no token that is known here; send the header Authorization: Bearer TOKEN."
            refused = _refused(401, "no_token", message, {"WWW-Authenticate": "Bearer"})
        elif not (token or self._guard.anyone or _is_loopback(address)):
            message = f"This server knows no tokens, so it answers its own machine alone: {HOW_TO_MAKE_ONE}."
            refused = _refused(401, "no_token", message, {"WWW-Authenticate": "Bearer"})
        else:
            await self.app(scope, receive, send)
            return
        await error_response(refused)(scope, receive, send)


def _refused(status: int, code: str, message: str, headers: dict[str, str]) -> RequestError:
    # The body is not read, so the connection cannot be used for another request.
    return RequestError(status, code, message, headers={**headers, "Connection": "close"})


def _is_loopback(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return found.is_loopback
