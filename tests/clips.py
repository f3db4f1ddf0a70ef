"""Video clips of small pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from glyphrun.images import decode_image, encode_image
from serving import picture

FPS = 25


def save_clip(file: Path, frames: int, *, size: tuple[int, int] = (96, 64), fps: float = FPS) -> Path:
    """A clip of as many different pictures; MP4 or AVI by its name. size: width and height."""
    code = cv2.VideoWriter_fourcc(*("MJPG" if file.suffix == ".avi" else "mp4v"))
    clip = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, code, fps, size)
    assert clip.isOpened()
    for number in range(frames):
        clip.write(np.ascontiguousarray(decode_image(picture(number, size[1], size[0]))[..., ::-1]))
    clip.release()
    return file


def cut_out(file: Path, box: tuple[int, int, int, int], numbers: list[int]) -> list[bytes]:
    """What a clip's frames show within x, y, width and height, as lossless images."""
    x, y, width, height = box
    clip = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    pictures = []
    while (found := clip.read())[0]:
        pictures.append(found[1])
    return [encode_image(pictures[number][y : y + height, x : x + width, ::-1]) for number in numbers]
