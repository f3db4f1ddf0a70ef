"""Items shown in the report: their frames, made small, the reading, and each frame's vote."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from glyphrun.images import decode_image, encode_image
from glyphrun.report.wording import count, finite, percent, reading_text

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
MOST_FRAMES = 16  # shown of an item
MOST_BYTES = 2_250_000  # of all frames together; in base64 they are a third more
SIDES = (
    160,
    112,
    80,
    56,
    40,
)  # pixels of a frame among others, until all fit; those of an item alone are five times as wide
ALONE = 5
SMALL_FILE = 8_000  # bytes of a frame that stays as it is
WIDE = 2.5  # width over height from which a picture takes a card of its own width


@dataclass(frozen=True)
class Example:
    """One sample with what the winner read; an empty truth or reading means "not readable".

    frames are encoded PNG or JPEG, in order; confidence is in 0..1; votes holds (text, weight) per frame, or nothing.
    """

    sample_id: str
    split: str
    truth: str
    reading: str
    confidence: float
    frames: tuple[bytes, ...]
    votes: tuple[tuple[str, float], ...] = ()

    @property
    def right(self) -> bool:
        return self.reading == self.truth


@dataclass(frozen=True)
class Frame:
    """A frame as the page shows it: its data URI, a caption of its vote, and the vote's weight in 0..1 if it has one.

    number counts from 1 among all frames of the item.
    """

    uri: str
    number: int
    vote: str | None
    weight: float | None


@dataclass(frozen=True)
class Card:
    """An example as the page shows it; left_out: how many of its frames are not shown."""

    sample_id: str
    split: str
    truth: str
    reading: str
    right: bool
    confidence: float
    confidence_text: str
    frames: tuple[Frame, ...]
    left_out: int


@dataclass(frozen=True)
class ExampleSection:
    """Cards, the wrong ones first; wide: whether their pictures are lines of text; sentence: of what they were drawn."""

    cards: tuple[Card, ...]
    right: int
    wide: bool
    sentence: str


def example_section(examples: Sequence[Example], splits: Mapping[str, Mapping[str, Any]]) -> ExampleSection | None:
    """The section, None without examples. Raises ValueError, naming the sample, for frames that no browser would show."""
    if not examples:
        return None
    chosen = {example.sample_id: _shown(example) for example in examples}
    pictures = _small(examples, chosen)
    ordered = sorted(examples, key=lambda example: example.right)
    right = sum(example.right for example in examples)
    return ExampleSection(
        cards=tuple(_card(example, chosen[example.sample_id], pictures) for example in ordered),
        right=right,
        wide=_wide(examples),
        sentence=_drawn_of(examples, right, splits),
    )


def _drawn_of(examples: Sequence[Example], right: int, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Where wrong ones are shown more often than they occur, that has to be said."""
    names = [name for name in dict.fromkeys(example.split for example in examples) if name in splits]
    items = sum(int(splits[name]["n"]) for name in names)
    read = sum(round((finite(splits[name]["exact"]) or 0.0) * int(splits[name]["n"])) for name in names)
    if not items:
        return ""
    wrong = len(examples) - right
    return (
        f"Drawn by chance on {' and '.join(names)}: {wrong} of the {count(items - read)} wrong readings and {right} of the "
        f"{count(read)} right ones."
    )


def _shown(example: Example) -> list[int]:
    """The numbers of the frames that are shown, evenly over all of them."""
    if example.votes and len(example.votes) != len(example.frames):
        raise ValueError(
            f"sample {example.sample_id!r} has {len(example.frames)} frames but {len(example.votes)} votes; "
            "give one vote a frame, or none"
        )
    frames = len(example.frames)
    return [int(place) for place in np.linspace(0, frames - 1, min(frames, MOST_FRAMES)).round()]


def _small(examples: Sequence[Example], chosen: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], bytes]:
    """Encoded frames that together are small enough, by sample and number."""
    kept: dict[tuple[str, int], bytes] = {}
    large: dict[tuple[str, int], Image.Image] = {}
    for example in examples:
        for number in chosen[example.sample_id]:
            frame = example.frames[number]
            _media_type(frame, example.sample_id, number)
            picture = Image.fromarray(decode_image(frame, name=example.sample_id))
            side = SIDES[0] * (ALONE if len(example.frames) == 1 else 1)
            if max(picture.size) <= side and len(frame) <= SMALL_FILE:
                kept[example.sample_id, number] = frame
            else:
                large[example.sample_id, number] = _scaled(picture, min(1.0, side / max(picture.size)))
    room = MOST_BYTES - sum(map(len, kept.values()))
    scaled: dict[tuple[str, int], bytes] = {}
    for side in SIDES:
        smaller = {key: _scaled(picture, side / SIDES[0]) for key, picture in large.items()}
        scaled = {key: encode_image(np.asarray(picture), "JPEG") for key, picture in smaller.items()}
        if sum(map(len, scaled.values())) <= room:
            break
    return kept | scaled


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS) if factor < 1 else picture


def _wide(examples: Sequence[Example]) -> bool:
    with_frames = [example for example in examples if example.frames]
    sizes = [Image.open(io.BytesIO(example.frames[0])).size for example in with_frames]
    return bool(sizes) and float(np.median([width / height for width, height in sizes])) > WIDE


def _card(example: Example, chosen: Sequence[int], pictures: Mapping[tuple[str, int], bytes]) -> Card:
    heaviest = max((weight for _, weight in example.votes), default=0.0) or 1.0
    frames = []
    for number in chosen:
        text, weight = example.votes[number] if example.votes else (None, None)
        picture = pictures[example.sample_id, number]
        media_type = _media_type(picture, example.sample_id, number)
        frames.append(
            Frame(
                uri=f"data:{media_type};base64,{base64.b64encode(picture).decode('ascii')}",
                number=number + 1,
                vote=None if text is None else text or "–",
                weight=None if weight is None else min(max(weight / heaviest, 0.0), 1.0),
            )
        )
    return Card(
        sample_id=example.sample_id,
        split=example.split,
        truth=reading_text(example.truth),
        reading=reading_text(example.reading),
        right=example.right,
        confidence=min(max(example.confidence, 0.0), 1.0),
        confidence_text=percent(example.confidence, digits=0),
        frames=tuple(frames),
        left_out=len(example.frames) - len(frames),
    )


def _media_type(frame: bytes, sample_id: str, number: int) -> str:
    for signature, media_type in _SIGNATURES.items():
        if frame.startswith(signature):
            return media_type
    raise ValueError(f"frame {number} of sample {sample_id!r} is neither PNG nor JPEG; encode it as one of them")
