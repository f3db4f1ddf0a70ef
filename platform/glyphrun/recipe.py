"""What follows from a recognizer's settings: how its frames are made and which codec turns its tokens into text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glyphrun.images import ImageProcessor
from glyphrun.models.recognizer import ModelSettings
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec, normalise

TOKENIZER = "tokenizer.json"


def processor_for(settings: ModelSettings) -> ImageProcessor:
    """The image processor that a recognizer is trained and served with."""
    return ImageProcessor(**settings.input.model_dump())


def codec_for(settings: ModelSettings, charset: str, texts: Iterable[str]) -> Codec | SubwordCodec:
    """The codec of a recognizer for a data set's charset and labels; the longest label sets its length."""
    if settings.subwords is None:
        return Codec(charset, max((len(normalise(text)) for text in texts), default=1) or 1)
    unbounded = SubwordCodec.from_pretrained(**settings.subwords.model_dump(), max_length=1 << 20)
    longest = max((len(unbounded.encode(text)) for text in texts), default=1) or 1
    return SubwordCodec(unbounded.tokenizer_json, unbounded.begin, unbounded.end, unbounded.pad, longest)


def write_codec(codec: Codec | SubwordCodec, folder: Path) -> dict[str, Any]:
    """Put what a codec needs beside its JSON form into a folder, and return that form."""
    if isinstance(codec, SubwordCodec):
        (folder / TOKENIZER).write_text(codec.tokenizer_json, encoding="utf-8")
    return codec.to_json()


def read_codec(fields: dict[str, Any], folder: Path) -> Codec | SubwordCodec:
    """The codec that ``write_codec`` wrote."""
    if fields.get("kind") == "subwords":
        return SubwordCodec.from_json(fields, folder / TOKENIZER)
    return Codec.from_json(fields)
