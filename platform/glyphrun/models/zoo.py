"""Recognizers by name: sizes that people know, and smaller ones that train on two processor cores in minutes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from glyphrun.models.line_ctc import LineCTC, LineCTCSettings
from glyphrun.models.notices import without_torchao_notices
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import ModelSettings, Recognizer, TokenSpace
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.models.vlm import VLMSettings
from glyphrun.overlay import overlay

RecognizerSettings = Annotated[
    PARSeqSettings | QueryDigitsSettings | LineCTCSettings | TrOCRSettings | VLMSettings, Field(discriminator="kind")
]
_SETTINGS: TypeAdapter[ModelSettings] = TypeAdapter(RecognizerSettings)

_PUBLISHED: dict[str, Any] = {"image": (32, 128), "patch": (4, 8), "stem": "patch", "depth": 12, "mlp_ratio": 4.0}
_SMALL_CROP: dict[str, Any] = {"image": (40, 40), "patch": (8, 8), "stem": "convolution", "mlp_ratio": 2.0}
_SHORT_DECODER: dict[str, Any] = {"decoder_heads": 4, "decoder_mlp_ratio": 2.0, "dropout": 0.0, "permutations": 2}
_SMALL: dict[str, Any] = {
    "kind": "parseq",
    "encoder": {**_PUBLISHED, "width": 384, "heads": 6},
    "decoder_heads": 12,
}
_TINY: dict[str, Any] = {"kind": "parseq", "encoder": {**_PUBLISHED, "width": 192, "heads": 3}, "decoder_heads": 6}

ZOO: dict[str, dict[str, Any]] = {
    "parseq-small": _SMALL,
    "parseq-small-temporal": {**_SMALL, "fusion": "concatenate"},
    "parseq-small-patch16-224": {
        **_SMALL,
        "encoder": {**_SMALL["encoder"], "image": (224, 224), "patch": (16, 16)},
    },
    "parseq-tiny": _TINY,
    "parseq-tiny-temporal": {**_TINY, "fusion": "concatenate"},
    "parseq-nano": {
        "kind": "parseq",
        "encoder": {**_SMALL_CROP, "width": 96, "depth": 1, "heads": 4},
        **_SHORT_DECODER,
    },
    "query-digits": {
        "kind": "query-digits",
        "encoder": {**_SMALL_CROP, "width": 192, "depth": 12, "heads": 3, "mlp_ratio": 4.0},
        "decoder_heads": 6,
    },
    "query-digits-nano": {
        "kind": "query-digits",
        "encoder": {**_SMALL_CROP, "width": 96, "depth": 1, "heads": 4},
        **{key: value for key, value in _SHORT_DECODER.items() if key != "permutations"},
    },
    "line-ctc-small": {"kind": "line-ctc"},
    "line-ctc-nano": {
        "kind": "line-ctc",
        "stem": (16, 32, 48),
        "width": 96,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 2.0,
        "dropout": 0.0,
    },
    **{
        f"trocr-{size}": {"kind": "trocr", "source": f"microsoft/trocr-{size}-handwritten"}
        for size in ("small", "base", "large")
    },
    "trocr-nano": {
        "kind": "trocr",
        "encoder": {"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "patch": (8, 8), "stem": "convolution"},
        "decoder": {"width": 64, "depth": 1, "heads": 4, "mlp_ratio": 2.0, "dropout": 0.0},
        "image": (48, 192),
        "resize": "keep-aspect",
        "vocabulary": "charset",
    },
    "qwen2-vl-2b": {"kind": "vlm", "source": "Qwen/Qwen2-VL-2B-Instruct"},
    "qwen2.5-vl-3b": {"kind": "vlm", "source": "Qwen/Qwen2.5-VL-3B-Instruct"},
    "qwen2.5-vl-7b": {"kind": "vlm", "source": "Qwen/Qwen2.5-VL-7B-Instruct"},
}


def recognizer_settings(name: str, changes: dict[str, Any] | None = None) -> Any:
    """The settings of a named recognizer with some values changed; ``changes`` may nest (``{"encoder": {…}}``).

    Returns one of the classes of RecognizerSettings. Raises ValueError naming the nearest known recognizers, or the key
    that does not fit.
    """
    if name not in ZOO:
        near = get_close_matches(name, ZOO, n=3, cutoff=0.4) or sorted(ZOO)
        raise ValueError(f"no recognizer is called {name!r}: did you mean {' or '.join(near)}?")
    return _SETTINGS.validate_python(overlay(ZOO[name], changes or {}))


def parse_settings(settings: dict[str, Any]) -> Any:
    """Settings from their JSON form, as a bundle stores them: one of the classes of RecognizerSettings."""
    return _SETTINGS.validate_python(settings)


def build(settings: ModelSettings, tokens: TokenSpace) -> Recognizer:
    """A recognizer for the tokens of a codec, with fresh weights or those of the hub model that the settings name."""
    if isinstance(settings, PARSeqSettings):
        return PARSeq(settings, len(tokens.charset), tokens.max_length)
    if isinstance(settings, LineCTCSettings):
        return LineCTC(settings, tokens)
    if isinstance(settings, TrOCRSettings):
        with without_torchao_notices():
            from glyphrun.models.trocr import TrOCR  # here: transformers takes seconds to import

            return TrOCR(settings, tokens)
    if isinstance(settings, VLMSettings):
        with without_torchao_notices():
            from glyphrun.models.vlm import VLM

            return VLM(settings, tokens)
    if not isinstance(settings, QueryDigitsSettings):
        raise TypeError(f"{type(settings).__name__} are no settings of a recognizer")
    if tokens.charset != "0123456789" or tokens.max_length > 2:
        raise ValueError(
            f"query-digits reads numbers of at most two digits, charset 0123456789; this data set has the charset "
            f"{tokens.charset!r} and labels of up to {tokens.max_length} characters: choose a PARSeq"
        )
    return QueryDigits(settings)
