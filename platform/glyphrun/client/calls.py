"""What is sent to a server and what its answers mean, whichever client sends it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import uuid4

import httpx
from pydantic import TypeAdapter, ValidationError

from glyphrun_serve.schemas import (
    Answer,
    BatchAnswer,
    ClipBox,
    ClipEnd,
    EmbedAnswer,
    ErrorAnswer,
    ErrorDetail,
    ModelCard,
    Models,
    TrackletAnswer,
    TrackletError,
)

Frames = bytes | Sequence[bytes]  # a still image, or the frames of a tracklet; encoded
ClipTracklet = TrackletAnswer
ClipEvent = ClipTracklet | TrackletError | ClipEnd
Found = TypeVar("Found")

_BOXES = TypeAdapter(list[ClipBox])
_EVENTS: dict[str, type[ClipTracklet | TrackletError | ClipEnd]] = {
    "reading": ClipTracklet,
    "error": TrackletError,
    "done": ClipEnd,
}


class ServerError(RuntimeError):
    """A request was not answered: the server's sentence, its code and the id by which its log knows the request.

    status: None, and the code «unreachable», if there was no answer at all.
    """

    def __init__(self, status: int | None, code: str, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id


@dataclass(frozen=True)
class Call(Generic[Found]):
    """One request, and how its answer is understood."""

    method: str
    path: str
    parse: Callable[[bytes], Found]
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def recognize(frames: Frames, explain: bool, model: str | None) -> Call[Answer]:
    body = {"files": _files(frames), "params": _asked(model, explain=explain)}
    return Call("POST", "/v1/recognize", Answer.model_validate_json, body, _key())


def recognize_batch(items: Sequence[Frames], explain: bool, model: str | None) -> Call[list[Answer | ErrorDetail]]:
    encoded = [{"frames": [b64encode(frame).decode() for frame in _list(frames)]} for frames in items]
    body = {"json": {"items": encoded}, "params": _asked(model, explain=explain)}
    return Call("POST", "/v1/recognize/batch", _batch, body, _key())


def embed(frames: Frames, model: str | None) -> Call[EmbedAnswer]:
    body = {"files": _files(frames), "params": _asked(model)}
    return Call("POST", "/v1/embed", EmbedAnswer.model_validate_json, body, _key())


def models() -> Call[list[ModelCard]]:
    return Call("GET", "/v1/models", lambda body: Models.model_validate_json(body).models)


def video(clip: bytes, boxes: Iterable[ClipBox] | None, explain: bool, model: str | None) -> Call[None]:
    body: dict[str, Any] = {"files": {"clip": ("clip", clip)}, "params": _asked(model, explain=explain)}
    if boxes is not None:
        body["data"] = {"boxes": _BOXES.dump_json(list(boxes)).decode()}
    return Call("POST", "/v1/video", lambda _: None, body)


def understood(call: Call[Found], response: httpx.Response) -> Found:
    """The answer. Raises ServerError for a refusal, or for what is no answer of glyphrun's."""
    if response.status_code != 200:
        raise refusal(response)
    try:
        return call.parse(response.content)
    except ValidationError as error:
        raise _strange(response) from error


def refusal(response: httpx.Response) -> ServerError:
    """The error that a response of another status says."""
    try:
        said = ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:
        return _strange(response)
    return ServerError(response.status_code, said.code, said.message, said.request_id)


def unreachable(url: str, error: httpx.TransportError) -> ServerError:
    reason = str(error) or type(error).__name__
    return ServerError(None, "unreachable", f"{url} did not answer ({reason}); check that it runs and can be reached.")


class Events:
    """Server-sent events of a clip, out of the lines in which they come."""

    def __init__(self) -> None:
        self._name = ""
        self._ended = False

    def take(self, line: str) -> ClipEvent | None:
        """The event that this line completes, if any."""
        kind, _, value = line.partition(": ")
        if kind == "event":
            self._name = value
        if kind != "data" or self._name not in _EVENTS:
            return None
        event: ClipEvent = _EVENTS[self._name].model_validate_json(value)
        self._ended = isinstance(event, ClipEnd) or (isinstance(event, TrackletError) and event.tracklet is None)
        return event

    def check_end(self) -> None:
        """Raises ServerError if the server stopped before it had said that this is all."""
        if not self._ended:
            raise ServerError(None, "cut_short", "The answer to a clip ends in the middle; send the clip again.")


def _batch(body: bytes) -> list[Answer | ErrorDetail]:
    return [
        item.error if isinstance(item, ErrorAnswer) else item for item in BatchAnswer.model_validate_json(body).items
    ]


def _strange(response: httpx.Response) -> ServerError:
    message = (
        f"{response.request.url} answered {response.status_code} in a form that glyphrun does not use; check the URL."
    )
    return ServerError(response.status_code, "bad_answer", message, response.headers.get("x-request-id"))


def _list(frames: Frames) -> Sequence[bytes]:
    return [frames] if isinstance(frames, bytes) else frames


def _files(frames: Frames) -> list[tuple[str, tuple[str, bytes]]]:
    return [("frames", ("frame", frame)) for frame in _list(frames)]


def _asked(model: str | None, **options: bool) -> dict[str, str]:
    asked = {name: str(value).lower() for name, value in options.items()}
    return asked if model is None else {**asked, "model": model}


def _key() -> dict[str, str]:
    # Attempts share it, so a question whose answer was lost on its way is not read twice.
    return {"Idempotency-Key": uuid4().hex}
