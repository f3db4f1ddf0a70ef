from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from glyphrun.models.zoo import ZOO, build, parse_settings, recognizer_settings
from glyphrun.text import DIGITS, Codec


@pytest.mark.parametrize("name", ["parseq-nano", "query-digits-nano"])
@pytest.mark.parametrize("fusion", ["none", "attention", "concatenate", "mean"])
def test_every_small_recognizer_trains_on_tracklets_with_every_fusion(name, fusion):
    torch.manual_seed(0)
    settings = recognizer_settings(name, {"fusion": fusion})
    model = build(settings, Codec(DIGITS, 2))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    memory = model.encode(torch.randn(2, 3, 3, *settings.encoder.image), mask)
    texts = ["7", "23"] if fusion != "none" else ["7", "7", "23", "23", "23"]
    assert model.reads_frames_together == (fusion != "none")
    assert len(memory.tokens) == len(texts)
    model.loss(memory, Codec(DIGITS, 2).encode_batch(texts)).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", ZOO)
def test_settings_survive_json(name):
    settings = recognizer_settings(name)
    assert parse_settings(json.loads(settings.model_dump_json())) == settings


def test_changes_reach_inside_and_leave_the_rest():
    plain, changed = recognizer_settings("parseq-nano"), recognizer_settings("parseq-nano", {"encoder": {"width": 128}})
    assert changed.encoder.width == 128
    assert changed.model_copy(update={"encoder": plain.encoder}) == plain
    assert recognizer_settings("parseq-nano") == plain  # the zoo itself is as it was


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="'parseq-tyni': did you mean parseq-tiny"):
        recognizer_settings("parseq-tyni")
    with pytest.raises(ValueError, match="parseq-small.*query-digits-nano"):
        recognizer_settings("zzz")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"witdh": 3}, "witdh"),
        ({"encoder": {"hights": 3}}, "hights"),
        ({"encoder": {"width": 90, "heads": 4}}, "width 90 is not a multiple of heads 4"),
        ({"encoder": {"image": (40, 44)}}, "width 44 is not a multiple of the patch's 8"),
        ({"encoder": {"patch": (2, 8)}}, "height 2 is no multiple"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_by_name(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        recognizer_settings("parseq-nano", changes)


@pytest.mark.parametrize(("charset", "max_length"), [("0123456789a", 2), (DIGITS, 3), ("9876543210", 2)])
def test_query_digits_refuses_labels_that_are_no_shirt_numbers(charset, max_length):
    with pytest.raises(ValueError, match="at most two digits.*choose a PARSeq"):
        build(recognizer_settings("query-digits-nano"), Codec(charset, max_length))


@pytest.mark.parametrize("name", ["parseq-nano", "query-digits-nano", "line-ctc-nano", "trocr-nano"])
def test_every_small_recognizer_is_built_from_what_its_settings_say_alone(name):
    torch.manual_seed(0)
    settings, codec = recognizer_settings(name), Codec(DIGITS, 2)
    model = build(settings, codec)
    again = build(parse_settings(model.settings.model_dump(mode="json")), codec)
    again.load_state_dict(model.state_dict())
    pixels = torch.randn(2, 1, 3, min(settings.input.height, 64), min(settings.input.width, 192))
    mask = torch.ones(2, 1, dtype=torch.bool)
    one, other = (each.eval().encode(pixels, mask).tokens for each in (model, again))
    torch.testing.assert_close(one, other)
    parts = model.parts()
    names = [name for name, _ in model.named_parameters()]
    assert set(parts) == {"vision", "projector", "decoder"}
    assert all(any(name.startswith(prefix) for prefixes in parts.values() for prefix in prefixes) for name in names)
