"""Tracklets out of a video clip: what of it is to be read, and its pictures as they are decoded."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, NamedTuple

from glyphrun_serve.errors import RequestError
from glyphrun_serve.limits import Limits
from glyphrun_serve.schemas import ClipBox

WHOLE = "clip"  # the tracklet that a clip without boxes is
DECODER = Path(__file__).with_name("clip_decoder.py")
DECODER_BYTES = 2 * 1024**3
# A container that states its length roughly, as WebM does, may end this much sooner.
ENOUGH = 0.9


class Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    @property
    def pixels(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Header:
    """What a clip says of itself; frames may be a guess of its container."""

    width: int
    height: int
    fps: float
    frames: int


@dataclass
class Tracklet:
    """Pictures of one thing, as encoded images, and the numbers of their frames."""

    name: str
    numbers: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)


Plan = dict[str, dict[int, Box]]  # tracklet → frame → what to cut out


class Clip:
    """A clip that is being decoded in a process of its own; close() ends it. Its methods block: call them in a thread."""

    def __init__(self, source: IO[bytes], limits: Limits) -> None:
        """Raises RequestError for what is no clip, or a clip over the limits, before it is decoded."""
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._whole = True
        self._plan: Plan = {}
        self._order: list[tuple[int, str]] = []
        self._found: dict[str, Tracklet] = {}
        try:
            # The decoder has it open when it is removed here, so nothing stays however this process ends.
            with NamedTemporaryFile(prefix="glyphrun-clip-") as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                self._header = self._open(copy.name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask(self, boxes: Sequence[ClipBox] | None) -> None:
        """What to cut out: boxes, or whole frames. Raises RequestError for boxes that the clip cannot have."""
        self._whole = not boxes
        self._plan = _boxed(boxes, self._header, self._limits) if boxes else _whole(self._header, self._limits)
        self._order = sorted((number, name) for name, cuts in self._plan.items() for number in cuts)
        cuts: dict[int, list[Box]] = {}
        for number, name in self._order:
            cuts.setdefault(number, []).append(self._plan[name][number])
        self._found = {name: Tracklet(name) for name in self._plan}
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(list(cuts.items())).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            raise _broken(0) from None

    def next(self) -> Tracklet | None:
        """The next tracklet whose last frame has been decoded, None after the last. Raises RequestError if the clip breaks."""
        while self._order:
            number, name = self._order[0]
            image = self._image()
            found = self._found[name]
            if image is None:
                self._order.clear()
                if self._whole and len(found.images) >= ENOUGH * len(self._plan[name]):
                    return found
                raise _broken(number)
            self._order.pop(0)
            found.numbers.append(number)
            found.images.append(image)
            if len(found.images) == len(self._plan[name]):
                return self._found.pop(name)
        return None

    def _open(self, path: str) -> Header:
        with Path(path).open("rb") as file:
            if not _is_video(file.read(12)):
                raise _no_clip()
        seconds = max(1, round(2 * self._limits.clip_s))
        bounds = (DECODER_BYTES, seconds, self._limits.pixels)
        command = [sys.executable, "-I", str(DECODER), path, *map(str, bounds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},  # nothing of this process's environment, in which tokens may stand
        )
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline() or "null")
        if said is None or not all(isfinite(value) and value > 0 for value in said.values()):
            raise _no_clip()
        header = Header(round(said["width"]), round(said["height"]), said["fps"], round(said["frames"]))
        _check(header, self._limits)
        return header

    def _image(self) -> bytes | None:
        stdout = self._running().stdout
        assert stdout is not None
        length = stdout.read(4)
        if len(length) < 4:
            return None
        image = stdout.read(struct.unpack(">I", length)[0])
        return image if len(image) == struct.unpack(">I", length)[0] else None

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process


def _is_video(head: bytes) -> bool:
    """MP4 and QuickTime, Matroska and WebM, AVI: not playlists, which name other files, nor pictures."""
    return (
        head[4:8] in (b"ftyp", b"moov", b"wide", b"mdat", b"free", b"skip")
        or head.startswith(b"\x1aE\xdf\xa3")
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
    )


def _check(header: Header, limits: Limits) -> None:
    pixels, seconds = header.width * header.height, header.frames / header.fps
    if pixels > limits.pixels:
        message = (
            f"The clip is {header.width} × {header.height}; the limit is {limits.pixels:,} pixels a frame. Scale it."
        )
        raise RequestError(413, "too_many_pixels", message)
    if seconds > limits.clip_s or header.frames > limits.clip_frames:
        message = (
            f"The clip has {header.frames} frames in {seconds:.1f} s; the limits are {limits.clip_frames} and "
            f"{limits.clip_s:g} s. Cut it."
        )
        raise RequestError(413, "clip_too_long", message)


def _whole(header: Header, limits: Limits) -> Plan:
    pixels = header.width * header.height
    most = max(1, min(limits.frames, header.frames, limits.clip_pixels // pixels))
    box = Box(0, 0, header.width, header.height)
    return {WHOLE: {int((place + 0.5) * header.frames / most): box for place in range(most)}}


def _boxed(boxes: Sequence[ClipBox], header: Header, limits: Limits) -> Plan:
    plan: Plan = {}
    for box in boxes:
        where = f"The box of tracklet {box.tracklet!r} in frame {box.frame}"
        if box.frame >= header.frames:
            raise RequestError(
                422, "bad_boxes", f"{where} is behind the end of the clip, which has {header.frames} frames."
            )
        x, y, width, height = box.box
        cut = Box(
            max(0, round(x)),
            max(0, round(y)),
            min(header.width, round(x + width)),
            min(header.height, round(y + height)),
        )
        if cut.right <= cut.left or cut.bottom <= cut.top:
            message = (
                f"{where} has no pixel in the picture of {header.width} × {header.height}; send x, y, width, height."
            )
            raise RequestError(422, "bad_boxes", message)
        if box.frame in plan.setdefault(box.tracklet, {}):
            raise RequestError(422, "bad_boxes", f"{where} is there twice; send one box of a tracklet a frame.")
        plan[box.tracklet][box.frame] = cut
    if len(plan) > limits.items:
        message = f"The clip has {len(plan)} tracklets; the limit is {limits.items}. Send fewer of them at a time."
        raise RequestError(413, "too_many_tracklets", message)
    plan = {name: _spread(cuts, limits.frames) for name, cuts in plan.items()}
    pixels = sum(cut.pixels for cuts in plan.values() for cut in cuts.values())
    if pixels > limits.clip_pixels:
        message = (
            f"The boxes hold {pixels:,} pixels in all; the limit is {limits.clip_pixels:,}. Send fewer or smaller ones."
        )
        raise RequestError(413, "too_many_pixels", message)
    return plan


def _spread(cuts: dict[int, Box], most: int) -> dict[int, Box]:
    """At most so many of a tracklet's frames, evenly over its length."""
    numbers = sorted(cuts)
    if len(numbers) > most:
        numbers = [numbers[int((place + 0.5) * len(numbers) / most)] for place in range(most)]
    return {number: cuts[number] for number in numbers}


def _no_clip() -> RequestError:
    message = (
        "The clip cannot be opened; send a whole MP4, QuickTime, Matroska, WebM or AVI file that states its length."
    )
    return RequestError(422, "bad_clip", message)


def _broken(number: int) -> RequestError:
    message = f"The clip breaks off before frame {number} or is damaged there; export it again and send the whole file."
    return RequestError(422, "clip_broken", message)
