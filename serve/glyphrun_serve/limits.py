"""How much one request may ask for, checked before anything is decoded."""

from __future__ import annotations

import asyncio
import io
from base64 import b64decode
from collections.abc import Mapping, Sequence

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glyphrun.images import FORMATS, MAX_PIXELS
from glyphrun_serve.errors import RequestError, error_response

CLOSE = {"Connection": "close"}  # the rest of the body is not read


class Limits(BaseModel):
    """The most that one request may hold; more is answered with 413.

    pixels bounds one frame, request_pixels all frames of a request: small files can hold very large images.
    body_s is the time in which a body must arrive, else 408. answer_s is the time after which a request that is still
    waiting is answered with 503; member_s the time after which a quorum of an ensemble answers without a member that has no
    deadline of its own. clips is how many are decoded at once; clip_s and
    clip_frames bound what the header of one states, clip_pixels what is cut out of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(default=16 * 1024**2, gt=0)
    body_s: float = Field(default=60.0, gt=0)
    items: int = Field(default=64, gt=0)
    frames: int = Field(default=64, gt=0)
    pixels: int = Field(default=16_000_000, gt=0, le=MAX_PIXELS)
    request_pixels: int = Field(default=400_000_000, gt=0)
    answer_s: float = Field(default=30.0, gt=0)
    member_s: float = Field(default=5.0, gt=0)
    clips: int = Field(default=2, gt=0)
    clip_bytes: int = Field(default=64 * 1024**2, gt=0)
    clip_s: float = Field(default=60.0, gt=0)
    clip_frames: int = Field(default=3600, gt=0)
    clip_pixels: int = Field(default=64_000_000, gt=0)

    def check_items(self, count: int) -> None:
        if not count:
            raise RequestError(422, "no_items", "The batch has no items; send at least one.")
        if count > self.items:
            raise RequestError(
                413,
                "too_many_items",
                f"The batch has {count} items; the limit is {self.items}. Send several batches.",
            )

    def check_frames(self, count: int, name: str, item: int | None = None) -> None:
        if not count:
            raise RequestError(
                422,
                "no_frames",
                f"{name} has no frames; send at least one image.",
                item=item,
            )
        if count > self.frames:
            message = f"{name} has {count} frames; the limit is {self.frames}. Send fewer frames of the tracklet."
            raise RequestError(413, "too_many_frames", message, item=item)

    def check_pixels(
        self,
        frames: Sequence[bytes],
        name: str,
        spent: int = 0,
        item: int | None = None,
    ) -> int:
        """Pixels of these frames by their headers, added to those already spent by the request."""
        for number, data in enumerate(frames):
            label = f"{name}, frame {number}," if len(frames) > 1 else name
            pixels = stated_pixels(data)
            if pixels > self.pixels:
                message = f"{label} has more than {self.pixels:,} pixels; make it smaller."
                raise RequestError(413, "too_many_pixels", message, item=item)
            spent += pixels
            if spent > self.request_pixels:
                message = (
                    f"The request has more than {self.request_pixels:,} pixels in all; send fewer images at a time."
                )
                raise RequestError(413, "too_many_pixels", message, item=item)
        return spent

    def frames_of(self, item: object, number: int) -> list[bytes]:
        """The encoded images of one item of a batch's JSON."""
        name = f"Item {number}"
        if not isinstance(item, dict) or set(item) != {"frames"} or not isinstance(item["frames"], list):
            message = f'{name} is not of the form {{"frames": ["<base64>", …]}}; send exactly that key.'
            raise RequestError(422, "invalid_item", message, item=number)
        self.check_frames(len(item["frames"]), name, number)
        return [_from_base64(text, f"{name}, frame {place},", number) for place, text in enumerate(item["frames"])]


def stated_pixels(data: bytes) -> int:
    """Pixels that an encoded image's header states, without decoding it; 0 if no header can be read.

    What is not an image is refused later, by the decoder, with a sentence of its own.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:  # a broken header fails in many ways
        return 0


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large, stated or chunked, or that come too slowly.

    larger: bytes that a body may have at other paths.
    """

    def __init__(self, app: ASGIApp, limits: Limits, larger: Mapping[str, int]) -> None:
        self.app = app
        self._limits = limits
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self._larger.get(scope["path"], self._limits.body_bytes)
        message = f"The body is larger than {most:,} bytes; send less at a time."
        too_large = RequestError(413, "body_too_large", message, headers=CLOSE)
        message = f"The body did not arrive within {self._limits.body_s:g} s; send it faster, or less of it."
        too_slow = RequestError(408, "body_too_slow", message, headers=CLOSE)
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and (len(stated) > 18 or int(stated) > most):
            await error_response(too_large)(scope, receive, send)
            return
        received, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._limits.body_s

        async def bounded() -> Message:
            nonlocal received, whole
            if whole:  # what comes next is the news that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise too_slow from error
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            return message

        try:
            await self.app(scope, bounded, send)
        except RequestError as error:  # raised where nothing else answers it: by a middleware that reads the body
            await error_response(error)(scope, receive, send)


def _from_base64(text: object, name: str, item: int) -> bytes:
    if isinstance(text, str):
        try:
            return b64decode(text, validate=True)
        except ValueError:
            pass
    message = f"{name} is not base64; encode the bytes of the image file, without a data: prefix."
    raise RequestError(422, "bad_base64", message, item=item)
