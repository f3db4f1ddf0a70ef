"""Tracklets shown in the report: their frames, the reading and each frame's vote."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from glyphrun.report.wording import percent, reading_text

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


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
    """A frame as the page shows it: its data URI, a caption of its vote, and the vote's weight in 0..1 if it has one."""

    uri: str
    vote: str | None
    weight: float | None


@dataclass(frozen=True)
class Card:
    """An example as the page shows it."""

    sample_id: str
    split: str
    truth: str
    reading: str
    right: bool
    confidence: float
    confidence_text: str
    frames: tuple[Frame, ...]


def cards(examples: Sequence[Example]) -> list[Card]:
    """The examples in the given order. Raises ValueError, naming the sample, for frames that no browser would show."""
    return [_card(example) for example in examples]


def _card(example: Example) -> Card:
    if example.votes and len(example.votes) != len(example.frames):
        raise ValueError(
            f"sample {example.sample_id!r} has {len(example.frames)} frames but {len(example.votes)} votes; "
            "give one vote a frame, or none"
        )
    heaviest = max((weight for _, weight in example.votes), default=0.0) or 1.0
    frames = []
    for index, frame in enumerate(example.frames):
        text, weight = example.votes[index] if example.votes else (None, None)
        share = None if weight is None else min(max(weight / heaviest, 0.0), 1.0)
        frames.append(
            Frame(
                _data_uri(frame, example.sample_id, index),
                None if text is None else text or "–",
                share,
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
    )


def _data_uri(frame: bytes, sample_id: str, index: int) -> str:
    for signature, media_type in _SIGNATURES.items():
        if frame.startswith(signature):
            return f"data:{media_type};base64,{base64.b64encode(frame).decode('ascii')}"
    raise ValueError(f"frame {index} of sample {sample_id!r} is neither PNG nor JPEG; encode it as one of them")
