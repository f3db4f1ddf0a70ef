"""A process that decodes one clip: a decoder that a clip has crashed, or that eats memory, takes nobody with it.

Says a line of JSON about the clip (null if it cannot be opened), is told a line of JSON of what to cut out, [[frame,
[[left, top, right, bottom], …]], …], and writes each cut as its length in 4 bytes and a BMP, until the clip ends.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import chain

import av
from PIL import Image


def main(path: str, memory: int, seconds: int, pixels: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    try:
        # No other file and no address is opened, whatever a clip names.
        clip = av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace")
        stream = clip.streams.video[0]
        stream.codec_context.thread_count = 1
        stated, frames = about(clip, stream), decoded(clip, stream)
        if stated["width"] * stated["height"] <= pixels:  # else it is refused, and not even its first frame is decoded
            first = next(frames)
            frames = chain([first], frames)
            if first.rotation % 180:
                stated["width"], stated["height"] = stated["height"], stated["width"]
    except (av.FFmpegError, IndexError, StopIteration):
        stated, frames = None, iter(())
    out.write(json.dumps(stated).encode() + b"\n")
    out.flush()
    numbered = enumerate(frames)
    for wanted, boxes in json.loads(sys.stdin.readline() or "[]"):
        frame = next((frame for number, frame in numbered if number == wanted), None)
        if frame is None:
            return
        picture = upright(frame)
        for left, top, right, bottom in boxes:
            if right > picture.width or bottom > picture.height:  # pictures became smaller than the clip had said
                return
            encoded = BytesIO()
            picture.crop((left, top, right, bottom)).save(encoded, "BMP")
            out.write(struct.pack(">I", encoded.tell()) + encoded.getvalue())
    out.flush()


def about(clip: av.container.InputContainer, stream: av.VideoStream) -> dict[str, float]:
    """What the header states; 0 for what it does not."""
    fps = float(stream.average_rate or 0)
    seconds = (clip.duration or 0) / av.time_base
    return {"width": stream.width, "height": stream.height, "fps": fps, "frames": stream.frames or round(seconds * fps)}


def decoded(clip: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames until the first that is damaged."""
    try:
        yield from clip.decode(stream)
    except av.FFmpegError:
        return


def upright(frame: av.VideoFrame) -> Image.Image:
    """As a player shows it: cameras that are held upright film lying pictures and say so."""
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
