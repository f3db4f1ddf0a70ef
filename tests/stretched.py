"""Small recognizers whose fresh weights are stretched: at its first weights a model answers the same whatever it is shown."""

from __future__ import annotations

import torch

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.line_ctc import LineCTC, LineCTCSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Recognizer
from glyphrun.text import DIGITS, Codec

ENCODER = EncoderSettings(image=(16, 24), patch=(8, 8), width=16, depth=1, heads=2)
LINES = LineCTCSettings(height=16, max_width=64, stem=(8, 8, 16), width=16, depth=1, heads=2)
CODECS = {"parseq": Codec(DIGITS, 2), "query-digits": Codec(DIGITS, 2), "line-ctc": Codec(DIGITS, 4)}


def recognizer(kind: str, fusion: str = "none", *, seed: int = 4, encoder: EncoderSettings = ENCODER) -> Recognizer:
    torch.manual_seed(seed)
    made: Recognizer
    if kind == "line-ctc":
        made = LineCTC(LINES, CODECS[kind])
    elif kind == "query-digits":
        made = QueryDigits(QueryDigitsSettings(encoder=encoder, decoder_heads=2, fusion=fusion))
    else:
        made = PARSeq(PARSeqSettings(encoder=encoder, decoder_heads=2, fusion=fusion), 10, 2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "queries" in name or "length_query" in name:
                parameter.mul_(30)
            if "head" in name and name.endswith("weight"):
                parameter.mul_(5)
            if "cross_attn.out_proj.weight" in name:
                parameter.mul_(6)
            if "frame_embedding" in name or "gate.weight" in name:
                parameter.normal_()
    return made


def engine_for(
    read_by: Recognizer,
    codec: Codec = CODECS["parseq"],
    processor: ImageProcessor = ImageProcessor(height=16, width=24),
    **settings: object,
) -> Engine:
    """What reads by it in float32; settings: how it decodes."""
    decode = DecodeSettings.model_validate(settings)
    cpu, provenance = torch.device("cpu"), {"weights": "random"}
    return Engine(read_by, codec, processor, decode, device=cpu, precision="float32", provenance=provenance)
