"""Video clips of small pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from glyphrun.images import decode_image, encode_image
from serving import picture

FPS = 25


def save_clip(file: Path, frames: int, *, size: tuple[int, int] = (96, 64), fps: float = FPS) -> Path:
    """A clip of as many different pictures; MP4 or AVI by its name. size: width and height."""
    with av.open(str(file), "w") as clip:
        stream = clip.add_stream(
            "mjpeg" if file.suffix == ".avi" else "mpeg4", rate=Fraction(fps).limit_denominator(1001)
        )
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if file.suffix == ".avi" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(decode_image(picture(number, size[1], size[0])), format="rgb24")
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))
    return file


def cut_out(file: Path, box: tuple[int, int, int, int], numbers: list[int]) -> list[bytes]:
    """What a clip's frames show within x, y, width and height, as lossless images."""
    x, y, width, height = box
    with av.open(str(file)) as clip:
        pictures = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    return [encode_image(pictures[number][y : y + height, x : x + width]) for number in numbers]
