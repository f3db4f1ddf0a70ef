"""How much one request may ask for, checked before anything is decoded."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Sequence

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glyphrun.images import FORMATS, MAX_PIXELS
from glyphrun_serve.errors import RequestError, error_response


class Limits(BaseModel):
    """The most that one request may hold; more is answered with 413.

    pixels bounds one frame, request_pixels all frames of a request: small files can hold very large images.
    answer_s is the time after which a request that is still waiting is answered with 503; member_s the time after which a
    quorum of an ensemble answers without a member that has no deadline of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(default=16 * 1024**2, gt=0)
    items: int = Field(default=64, gt=0)
    frames: int = Field(default=64, gt=0)
    pixels: int = Field(default=16_000_000, gt=0, le=MAX_PIXELS)
    request_pixels: int = Field(default=400_000_000, gt=0)
    answer_s: float = Field(default=30.0, gt=0)
    member_s: float = Field(default=5.0, gt=0)

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
    """ASGI middleware that refuses bodies over a number of bytes, whether their length is stated or they come chunked."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = RequestError(
            413,
            "body_too_large",
            f"The body is larger than {self.most:,} bytes; send fewer or smaller images.",
        )
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > self.most:
            await error_response(too_large, {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most:
                raise too_large
            return message

        await self.app(scope, counted, send)


def _from_base64(text: object, name: str, item: int) -> bytes:
    if isinstance(text, str):
        try:
            return b64decode(text, validate=True)
        except ValueError:
            pass
    message = f"{name} is not base64; encode the bytes of the image file, without a data: prefix."
    raise RequestError(422, "bad_base64", message, item=item)
