"""Recognizers by name: sizes that people know, and smaller ones that train on two processor cores in minutes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Recognizer, TokenSpace
from glyphrun.overlay import overlay

RecognizerSettings = Annotated[PARSeqSettings | QueryDigitsSettings, Field(discriminator="kind")]
_SETTINGS: TypeAdapter[PARSeqSettings | QueryDigitsSettings] = TypeAdapter(RecognizerSettings)

_PUBLISHED: dict[str, Any] = {"image": (32, 128), "patch": (4, 8), "stem": "patch", "depth": 12, "mlp_ratio": 4.0}
_SMALL_CROP: dict[str, Any] = {"image": (40, 40), "patch": (8, 8), "stem": "convolution", "mlp_ratio": 2.0}
_SHORT_DECODER: dict[str, Any] = {"decoder_heads": 4, "decoder_mlp_ratio": 2.0, "dropout": 0.0, "permutations": 2}

ZOO: dict[str, dict[str, Any]] = {
    "parseq-small": {"kind": "parseq", "encoder": {**_PUBLISHED, "width": 384, "heads": 6}, "decoder_heads": 12},
    "parseq-tiny": {"kind": "parseq", "encoder": {**_PUBLISHED, "width": 192, "heads": 3}, "decoder_heads": 6},
    "parseq-nano": {
        "kind": "parseq",
        "encoder": {**_SMALL_CROP, "width": 96, "depth": 1, "heads": 4},
        **_SHORT_DECODER,
    },
    "query-digits-nano": {
        "kind": "query-digits",
        "encoder": {**_SMALL_CROP, "width": 96, "depth": 1, "heads": 4},
        **{key: value for key, value in _SHORT_DECODER.items() if key != "permutations"},
    },
}


def recognizer_settings(name: str, changes: dict[str, Any] | None = None) -> PARSeqSettings | QueryDigitsSettings:
    """The settings of a named recognizer with some values changed; ``changes`` may nest (``{"encoder": {…}}``).

    Raises ValueError naming the nearest known recognizer, or the key that does not fit.
    """
    if name not in ZOO:
        near = get_close_matches(name, ZOO, n=3, cutoff=0.4) or sorted(ZOO)
        raise ValueError(f"no recognizer is called {name!r}: did you mean {' or '.join(near)}?")
    return _SETTINGS.validate_python(overlay(ZOO[name], changes or {}))


def parse_settings(settings: dict[str, Any]) -> PARSeqSettings | QueryDigitsSettings:
    """Settings from their JSON form, as a bundle stores them."""
    return _SETTINGS.validate_python(settings)


def build(settings: PARSeqSettings | QueryDigitsSettings, tokens: TokenSpace) -> Recognizer:
    """A recognizer with fresh weights for the tokens of a codec."""
    if isinstance(settings, PARSeqSettings):
        return PARSeq(settings, len(tokens.charset), tokens.max_length)
    if tokens.charset != "0123456789" or tokens.max_length > 2:
        raise ValueError(
            f"query-digits reads numbers of at most two digits, charset 0123456789; this data set has the charset "
            f"{tokens.charset!r} and labels of up to {tokens.max_length} characters: choose a PARSeq"
        )
    return QueryDigits(settings)
