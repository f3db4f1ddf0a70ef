"""A process that decodes one clip: a decoder that a clip has crashed, or that eats memory, takes nobody with it.

Says a line of JSON about the clip (null if it cannot be opened), is told a line of JSON of what to cut out, [[frame,
[[left, top, right, bottom], …]], …], and writes each cut as its length in 4 bytes and a BMP, until the clip ends.
"""

from __future__ import annotations

import json
import resource
import struct
import sys

import cv2


def main(path: str, memory: int, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    clip = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    out = sys.stdout.buffer
    stated = {
        "width": clip.get(cv2.CAP_PROP_FRAME_WIDTH),
        "height": clip.get(cv2.CAP_PROP_FRAME_HEIGHT),
        "fps": clip.get(cv2.CAP_PROP_FPS),
        "frames": clip.get(cv2.CAP_PROP_FRAME_COUNT),
    }
    out.write(json.dumps(stated if clip.isOpened() else None).encode() + b"\n")
    out.flush()
    number = 0
    for wanted, boxes in json.loads(sys.stdin.readline() or "[]"):
        while number <= wanted:
            if not clip.grab():
                return
            number += 1
        whole, pixels = clip.retrieve()  # (H, W, 3) uint8, blue first, as BMP has it
        if not whole:
            return
        for left, top, right, bottom in boxes:
            cut = pixels[top:bottom, left:right]
            if cut.shape[:2] != (bottom - top, right - left):  # pictures became smaller than the clip had said
                return
            encoded = cv2.imencode(".bmp", cut)[1].tobytes()
            out.write(struct.pack(">I", len(encoded)) + encoded)
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
