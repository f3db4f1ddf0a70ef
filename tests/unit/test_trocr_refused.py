"""Settings and sources that do not fit together are errors that say so."""

from __future__ import annotations

import pytest
from transformers import ViTConfig

from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.text import Codec
from tiny_trocr import SIDE, Subwords, tiny


@pytest.mark.parametrize(
    ("settings", "tokens", "sentence"),
    [
        ({}, Codec("abc", 3), "use the source's tokenizer, or set vocabulary: charset"),
        ({}, Subwords(num_tokens=41), "the codec has 41 tokens"),
        ({}, Subwords(begin=0), "begin, end and pad 2, 2 and 1; the codec has 40 tokens with 0, 2 and 1"),
        ({"begin": 0}, Subwords(begin=0), "uses token 2 as begin, and 0 is set: set begin: 2"),
        ({}, Subwords(max_length=16), "places for labels of up to 15 tokens, and the longest has 16"),
        ({"image": (32, 36)}, Subwords(), "32 × 36 is no multiple of the patch 8 × 8"),
        ({"scales": 3, "vocabulary": "charset", "image": (30, 32)}, Codec("abc", 3), "30 × 32 is no multiple"),
    ],
)
def test_what_does_not_fit_a_source_is_an_error_that_says_so(tmp_path, settings, tokens, sentence):
    tiny("base").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        TrOCR(TrOCRSettings(**{"source": str(tmp_path), "image": (SIDE, SIDE), **settings}), tokens)


def test_another_kind_of_model_is_refused_before_its_weights_are_loaded(tmp_path):
    ViTConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit; a TrOCR is a vision-encoder-decoder of vit or deit and trocr"):
        TrOCR(TrOCRSettings(source=str(tmp_path)), Subwords())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "needs a source"),
        ({"source": "a/b", "encoder": {"width": 64}}, "leave them out"),
        ({"source": "a/b", "end": 1}, "end and pad are both token 1"),
        ({"source": "a/b", "scale": 1}, "scale"),
        ({"source": "a/b", "scales": 4}, "scales"),
        ({"vocabulary": "charset", "encoder": {"depth": 2}, "scales": 3}, "scales 3 cannot be taken"),
        ({"vocabulary": "charset", "encoder": {"heads": 7}}, "width 256 is not a multiple of heads 7"),
        ({"vocabulary": "charset", "decoder": {"heads": 7}}, "width 256 is not a multiple of heads 7"),
        ({"vocabulary": "charset", "encoder": {"stem": "convolution", "patch": (6, 8)}}, "6 × 8 is no multiple"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrOCRSettings(**settings)
