"""The same question asked twice under one Idempotency-Key is answered once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glyphrun_serve.errors import RequestError, error_response
from glyphrun_serve.parameters import adapter_in

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
LONGEST_KEY = 200
# Answers to a busy moment, or to a slow client: asked again, the same question may have another.
PASSING = frozenset({408, 429})
OVERHEAD = 2048  # bytes of a question with its key and headers, about

Key = tuple[str, str]


@dataclass
class Question:
    """What was asked, as a hash of it, and the answer once there is one."""

    hash: bytes
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    answer: tuple[Message, ...] = ()  # empty if its client left before it was whole


class KeptAnswers:
    """Answers by who asked and the key, for some seconds and up to a number of bytes; the oldest go first."""

    def __init__(self, clock: Callable[[], float], *, seconds: float = 600.0, most_bytes: int = 64 * 1024**2) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._size = 0
        self._open: dict[Key, Question] = {}
        self._kept: OrderedDict[Key, tuple[Question, float, int]] = OrderedDict()  # until when, bytes

    def get(self, key: Key) -> Question | None:
        self._forget_old()
        kept = self._kept.get(key)
        return kept[0] if kept else self._open.get(key)

    def ask(self, key: Key, hash: bytes) -> None:
        """A new question; whoever asks the same waits for its answer."""
        self._open[key] = Question(hash)

    def settle(self, key: Key, answer: tuple[Message, ...], keep: bool) -> None:
        """Those who wait get the answer even if it is not to be kept."""
        question = self._open.pop(key)
        question.answer = answer
        question.answered.set()
        if keep:
            size = OVERHEAD + sum(len(message.get("body", b"")) for message in answer)
            self._kept[key] = question, self._clock() + self._seconds, size
            self._size += size
            self._forget_old()

    def _forget_old(self) -> None:
        while self._kept:
            key, (_, until, size) = next(iter(self._kept.items()))
            if until > self._clock() and self._size <= self._most_bytes:
                return
            del self._kept[key]
            self._size -= size


class Idempotent:
    """ASGI middleware for posts that bear a key; paths: those whose answers are short enough to be kept."""

    def __init__(self, app: ASGIApp, kept: KeptAnswers, paths: frozenset[str]) -> None:
        self.app = app
        self._kept = kept
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        given = headers.get(HEADER)
        if given is None or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self.app(scope, receive, send)
            return
        if not (1 <= len(given) <= LONGEST_KEY and given.isprintable()):
            message = f"The {HEADER} is not 1 to {LONGEST_KEY} printable characters; send a UUID."
            await error_response(RequestError(422, "bad_idempotency_key", message))(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        key = (scope.get("asked_by") or "", given)
        question = _hash(scope, headers.get("content-type", ""), body)
        while (asked := self._kept.get(key)) is not None:
            if asked.hash != question:
                message = f"The {HEADER} was used for another request; send a new key with each new request."
                await error_response(RequestError(422, "idempotency_key_reused", message))(scope, receive, send)
                return
            await asked.answered.wait()
            if asked.answer:
                await _replay(asked.answer, send)
                return
        await self._answer(key, question, body, scope, receive, send)

    async def _answer(self, key: Key, question: bytes, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        self._kept.ask(key, question)
        sent: list[Message] = []
        given = False

        async def give() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def recorded(message: Message) -> None:
            # A copy: what comes outside of this puts an id of its own into the headers.
            sent.append({**message, "headers": list(message["headers"])} if "headers" in message else message)
            await send(message)

        try:
            await self.app(scope, give, recorded)
        finally:
            whole = bool(sent) and sent[-1]["type"] == "http.response.body" and not sent[-1].get("more_body", False)
            keep = whole and sent[0]["status"] < 500 and sent[0]["status"] not in PASSING
            self._kept.settle(key, tuple(sent) if whole else (), keep)


async def _replay(answer: tuple[Message, ...], send: Send) -> None:
    for message in answer:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message["headers"])}
            MutableHeaders(scope=message)[REPLAYED] = "true"
        await send(message)


async def _whole(receive: Receive) -> bytes | None:
    """The body, whose size and time are bounded further out; None if the client left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _hash(scope: Scope, content_type: str, body: bytes) -> bytes:
    # Each program that sends a form makes up a boundary for it, anew for each attempt.
    kind, _, boundary = content_type.partition("boundary=")
    boundary = boundary.partition(";")[0].strip('" ')
    if boundary:
        body = body.replace(boundary.encode("latin-1"), b"")
    found = sha256()
    adapter = adapter_in(Headers(scope=scope))
    for part in (scope["path"].encode(), scope["query_string"], adapter.encode(), kind.encode("latin-1"), body):
        found.update(sha256(part).digest())
    return found.digest()
