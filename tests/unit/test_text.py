from __future__ import annotations

import json

import pytest
import torch

from glyphrun.text import DIGITS, Codec, TextError, normalise


def test_token_ids_are_those_of_the_published_parseq():
    codec = Codec(DIGITS, max_length=2)
    assert (codec.end, codec.begin, codec.pad) == (0, 11, 12)
    assert (codec.num_classes, codec.num_tokens) == (11, 13)
    assert codec.encode("09") == [1, 10]


def test_a_batch_is_begin_characters_end_padding():
    tokens = Codec(DIGITS, max_length=2).encode_batch(["7", "", "32"])
    assert tokens.dtype == torch.long
    assert tokens.tolist() == [[11, 8, 0, 12], [11, 0, 12, 12], [11, 4, 3, 0]]


def test_an_empty_batch_has_no_rows():
    assert Codec(DIGITS, max_length=2).encode_batch([]).shape == (0, 2)


@pytest.mark.parametrize("text", ["", "0", "00", "98"])
def test_decode_undoes_encode_and_stops_at_the_first_end(text):
    codec = Codec(DIGITS, max_length=2)
    assert codec.decode(codec.encode(text)) == text
    assert codec.decode(torch.tensor([*codec.encode(text), 0, 5, codec.pad])) == text


def test_decode_refuses_begin_and_pad_before_the_end_and_says_where():
    codec = Codec(DIGITS, max_length=3)
    with pytest.raises(TextError, match=r"Id 12 \(pad\) at position 1"):
        codec.decode([3, 12, 0])
    with pytest.raises(TextError, match=r"Id 11 \(begin\) at position 0"):
        codec.decode([11])
    with pytest.raises(TextError, match="Id -1"):
        codec.decode([-1])


def test_a_character_outside_the_charset_is_named_with_code_point_name_and_position():
    with pytest.raises(TextError, match=r"'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\) at position 1 of 'dé'"):
        Codec("abcd", max_length=5).encode("dé")


def test_a_text_beyond_the_limit_says_both_lengths():
    with pytest.raises(TextError, match="'123' has 3 characters; the limit is 2"):
        Codec(DIGITS, max_length=2).encode("123")


def test_odia_rra_is_compared_in_its_two_code_points():
    assert [ord(part) for part in normalise("\u0b5c")] == [0x0B21, 0x0B3C]
    codec = Codec("\u0b21\u0b3c", max_length=4)
    assert codec.decode(codec.encode("\u0b5c")) == normalise("\u0b5c")
    with pytest.raises(TextError, match=r"U\+0B5C ORIYA LETTER RRA\), which NFC writes as U\+0B21 U\+0B3C"):
        Codec("\u0b5c", max_length=1)


def test_decomposed_and_composed_accents_have_the_same_ids():
    codec = Codec("é", max_length=1)
    assert codec.encode("e\u0301") == codec.encode("é") == [1]


@pytest.mark.parametrize(
    ("charset", "max_length", "sentence"),
    [
        ("", 2, "empty"),
        ("0120", 2, r"'0' \(U\+0030 DIGIT ZERO\) more than once"),
        ("\u212b", 2, r"U\+212B ANGSTROM SIGN\), which NFC writes as U\+00C5"),
        ("01", 0, "max_length is 0"),
    ],
)
def test_a_bad_charset_is_refused_when_made(charset, max_length, sentence):
    with pytest.raises(TextError, match=sentence):
        Codec(charset, max_length)


def test_a_codec_survives_json_and_refuses_another_normal_form():
    codec = Codec("aé ଡ", max_length=7)
    stored = json.loads(json.dumps(codec.to_json()))
    assert Codec.from_json(stored) == codec
    with pytest.raises(TextError, match="NFKC"):
        Codec.from_json({**stored, "normal_form": "NFKC"})
    with pytest.raises(TextError, match="keys"):
        Codec.from_json({**stored, "beam": 4})
