"""A published TrOCR sees and writes here what it does in transformers, and can be given a new charset."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.text import Codec
from tiny_trocr import KINDS, SIDE, Subwords, encoded, loaded, pictures, rows_of, step_by_step, taught, tiny


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model_sees_and_writes_what_it_does_in_transformers(tmp_path, kind):
    theirs = tiny(kind)
    ours = loaded(theirs, tmp_path)
    frames = pictures(3)
    memory = encoded(ours, frames)
    features = theirs.encoder(frames[:, 0]).last_hidden_state
    projected = theirs.enc_to_dec_proj(features) if kind == "small" else features
    torch.testing.assert_close(memory.tokens, projected, atol=1e-5, rtol=0)
    tokens = rows_of((2, 5, 9, 30, 0), (2, 39, 1, 7, 7), (2, 11, 12, 13, 3))
    # Their waves leave padding out of the count when a text is read at once, and do not when it grows: compare as it grows.
    expected, cache = [], None
    for column in tokens.T:
        out = theirs(frames[:, 0], decoder_input_ids=column[:, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        expected.append(out.logits[:, -1])
    stacked = torch.stack(expected, dim=1)
    assert stacked.std(dim=0).max() > 0.1  # the pictures make a difference
    torch.testing.assert_close(step_by_step(ours, memory, tokens), stacked.log_softmax(-1), atol=1e-4, rtol=0)
    if kind != "large-stage1":
        at_once = theirs(frames[:, 0], decoder_input_ids=tokens).logits
        torch.testing.assert_close(stacked, at_once, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 4])
def test_a_beam_writes_the_same_tokens_as_generate(tmp_path, kind, width):
    theirs, frames = tiny(kind), pictures(16)
    taught(theirs, frames[:, 0])
    ours = loaded(theirs, tmp_path)
    generated = theirs.generate(
        frames[:, 0],
        num_beams=width,
        do_sample=False,
        max_new_tokens=11,
        **({"length_penalty": 0.0, "early_stopping": False} if width > 1 else {}),
    ).tolist()
    expected = [tuple(row[1 : row.index(2, 1)] if 2 in row[1:] else row[1:]) for row in generated]
    settings = DecodeSettings(search="beam", width=width, n_best=1) if width > 1 else DecodeSettings()
    with torch.no_grad():
        found = [item[0].tokens for item in search(ours, encoded(ours, frames), settings)]
    assert found == expected
    assert len(set(found)) > 8
    assert len({len(reading) for reading in found}) > 4


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16)])
def test_another_square_interpolates_the_places_as_transformers_does(tmp_path, height, width):
    theirs = tiny("base")
    ours = loaded(theirs, tmp_path, image=(height, width))
    frames = pictures(2, height, width)
    expected = theirs.encoder(frames[:, 0], interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(encoded(ours, frames).tokens, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_loss_of_a_published_model_is_that_of_transformers(tmp_path):
    theirs = tiny("base")
    ours = loaded(theirs, tmp_path)
    frames = pictures(2)
    targets = rows_of((2, 5, 6, 2, 1), (2, 7, 8, 9, 2))
    labels = targets[:, 1:].masked_fill(targets[:, 1:] == 1, -100)
    expected = theirs(frames[:, 0], decoder_input_ids=targets[:, :-1], labels=labels).loss
    assert ours.loss(encoded(ours, frames), targets).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_charset_keeps_the_encoder_and_the_decoder_under_its_vocabulary(tmp_path, kind):
    theirs = tiny(kind)
    theirs.save_pretrained(tmp_path)
    codec = Codec("0123456789", 4)
    settings = TrOCRSettings(source=str(tmp_path), image=(SIDE, SIDE), vocabulary="charset")
    assert settings.subwords is None
    ours = TrOCR(settings, codec)
    assert ours.decoder.embed_tokens.weight.shape[0] == codec.num_tokens
    assert (ours.decoder.head is None) == (kind == "base")
    for name, parameter in theirs.encoder.named_parameters():
        if not name.startswith("pooler."):
            assert torch.equal(parameter, ours.encoder.get_parameter(name))
    assert torch.equal(theirs.decoder.model.decoder.layers[1].fc2.weight, ours.decoder.layers[1].fc2.weight)
    # The first character has the number that padding had, and learns like any other.
    ours.loss(encoded(ours, pictures(2)), codec.encode_batch(["00", "1"])).backward()
    gradient = ours.decoder.embed_tokens.weight.grad
    assert gradient is not None
    assert gradient[1].abs().sum() > 0
    # Nor does it lose its place where places are waves.
    seen = ours.eval().decoder.memory_keys_values(encoded(ours, pictures(1)).tokens)
    first, later = (
        ours.decoder(torch.tensor([[1]]), torch.tensor([place]), [], None, seen, None)[0] for place in (0, 3)
    )
    assert (first - later).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", ["published", "charset"])
def test_settings_and_weights_bring_a_model_back_without_its_source(tmp_path, kind, vocabulary):
    tiny(kind).save_pretrained(tmp_path / "published")
    tokens = Subwords() if vocabulary == "published" else Codec("xyz", 9)
    settings = TrOCRSettings(
        source=str(tmp_path / "published"), image=(SIDE, SIDE), vocabulary=vocabulary, resize="keep-aspect", scales=2
    )
    first = TrOCR(settings, tokens).eval()
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "published").rename(tmp_path / "gone")
    stored = json.loads(first.settings.model_dump_json())
    assert str(tmp_path) not in json.dumps(stored["config"])
    for _ in range(2):  # a rebuilt model can be stored again
        again = TrOCR(TrOCRSettings(**stored), tokens).eval()
        assert again.settings.config == stored["config"]
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    frames, row = pictures(2), rows_of((tokens.begin, 1, 3), (tokens.begin, 2, 1))
    torch.testing.assert_close(
        step_by_step(again, encoded(again, frames), row),
        step_by_step(first, encoded(first, frames), row),
        atol=0,
        rtol=0,
    )
