from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    DeiTConfig,
    DeiTModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from glyphrun.decoding.search import beam, search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import Memory
from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.text import Codec

SIDE, PATCH, WIDTH = 32, 8, 16
KINDS = ["base", "large-stage1", "small"]
VISION = {"width": 16, "depth": 2, "heads": 2, "patch": (8, 8)}
TEXT = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0}


@dataclass(frozen=True)
class Subwords:
    """A codec's numbers, as a recognizer sees them."""

    num_tokens: int = 40
    max_length: int = 10
    begin: int = 2
    end: int = 2
    pad: int = 1
    charset: str = ""


def tiny(kind: str) -> VisionEncoderDecoderModel:
    """What the published models of a size have in common with each other, in a few thousand random weights."""
    torch.manual_seed(4)
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    text = TrOCRConfig(
        vocab_size=40,
        d_model=24 if kind == "small" else WIDTH,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
        cross_attention_hidden_size=None if kind == "small" else WIDTH,
        activation_function="relu" if kind == "large-stage1" else "gelu",
        use_learned_position_embeddings=kind != "large-stage1",
        layernorm_embedding=kind != "large-stage1",
        scale_embedding=kind != "base",
        tie_word_embeddings=kind == "base",
    )
    encoder = DeiTModel(DeiTConfig(**vision)) if kind == "small" else ViTModel(ViTConfig(qkv_bias=False, **vision))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=TrOCRForCausalLM(text)).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name else 0.25))
    return model


def taught(model: VisionEncoderDecoderModel, frames: Tensor) -> None:
    """Half an education: what it writes ends somewhere, and is not always the same."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, 40, (len(frames), 9), generator=generator)
    for row, length in enumerate(torch.randint(0, 9, (len(frames),), generator=generator).tolist()):
        labels[row, length:] = -100
        labels[row, length] = 2
    context = torch.cat([torch.full_like(labels[:, :1], 2), labels[:, :-1].clamp_min(1)], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = model(frames, decoder_input_ids=context, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loaded(model: VisionEncoderDecoderModel, folder: Path, **changes: Any) -> TrOCR:
    model.save_pretrained(folder)
    settings = {"source": str(folder), "image": (SIDE, SIDE), **changes}
    return TrOCR(TrOCRSettings(**settings), Subwords()).eval()


def small(tokens: Any = None, **changes: Any) -> TrOCR:
    """A new TrOCR for letters, with weights that tell pictures from each other."""
    torch.manual_seed(7)
    settings = {"encoder": VISION, "decoder": TEXT, "image": (24, 48), "vocabulary": "charset", **changes}
    model = TrOCR(TrOCRSettings(**settings), tokens or Codec("abcdef", 6)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name else 0.25))
        for layer in model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
    return model


def pictures(items: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(items, 1, 3, height, width, generator=torch.Generator().manual_seed(1))


def encoded(model: TrOCR, frames: Tensor, sizes: list[tuple[int, int]] | None = None) -> Memory:
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    return model.encode(frames, mask, None if sizes is None else torch.tensor(sizes)[:, None])


def step_by_step(model: TrOCR, memory: Memory, tokens: Tensor) -> Tensor:
    """Log-probabilities after each of the given tokens, (B, L) from begin on → (B, L, V)."""
    state, steps = model.start(memory, 1), []
    for column in tokens.T:
        log_probs, state = model.step(state, column)
        steps.append(log_probs)
    return torch.stack(steps, dim=1)


def rows_of(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows)


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
@pytest.mark.parametrize("kind", ["base", "small"])
def test_the_content_of_padding_changes_nothing(tmp_path, kind):
    ours = loaded(tiny(kind), tmp_path, image=(32, 64), resize="keep-aspect")
    sizes = [(32, 20), (13, 64), (32, 64), (5, 3)]
    plain, dirty = pictures(4, 32, 64), pictures(4, 32, 64)
    for item, (height, width) in enumerate(sizes):
        plain[item, ..., height:, :], plain[item, ..., width:] = 0, 0
        dirty[item, ..., height:, :], dirty[item, ..., width:] = float("nan"), 1e4
    clean, garbage = encoded(ours, plain, sizes), encoded(ours, dirty, sizes)
    specials = 2 if kind == "small" else 1
    # Four rows of eight patches: 4 × 3, 2 × 8, all, and one of them hold any of the picture.
    assert clean.mask is not None
    assert clean.mask.sum(1).tolist() == [specials + 12, specials + 16, specials + 32, specials + 1]
    torch.testing.assert_close(clean.tokens[clean.mask], garbage.tokens[garbage.mask], atol=1e-5, rtol=0)
    tokens = rows_of(*[(2, 5, 9, 30)] * 4)
    torch.testing.assert_close(
        step_by_step(ours, clean, tokens), step_by_step(ours, garbage, tokens), atol=1e-5, rtol=0
    )


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_a_picture_reads_the_same_alone_and_beside_larger_ones(stem):
    model = small(resize="keep-aspect", image=(32, 64), encoder={**VISION, "stem": stem})
    sizes = [(32, 20), (9, 64), (24, 40)]
    frames = pictures(3, 32, 64)
    for item, (height, width) in enumerate(sizes):
        frames[item, ..., height:, :], frames[item, ..., width:] = 1e4, float("nan")
    together = beam(model, encoded(model, frames, sizes), 3, 3)
    assert len({tuple(hypothesis.tokens for hypothesis in found) for found in together}) > 1
    for item, found in enumerate(together):
        memory = encoded(model, frames[item : item + 1], sizes[item : item + 1])
        assert memory.mask is None  # no patch is computed that holds nothing of the only picture
        alone = beam(model, memory, 3, 3)[0]
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in found]
        assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in found], abs=1e-4)


@torch.no_grad()
def test_a_squeezed_picture_ignores_sizes():
    model = small()
    frames = pictures(2, 24, 48)
    assert torch.equal(encoded(model, frames, [(8, 8), (24, 48)]).tokens, encoded(model, frames).tokens)


@torch.no_grad()
def test_only_existing_frames_are_items():
    model = small()
    frames = torch.randn(2, 3, 3, 24, 48)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    memory = model.encode(frames, mask)
    assert memory.frame_mask.shape == (3, 1)
    torch.testing.assert_close(memory.tokens, encoded(model, frames[mask][:, None]).tokens, atol=1e-5, rtol=0)


@torch.no_grad()
def test_beams_follow_their_own_past_after_any_reordering_and_leaving():
    model = small()
    memory = encoded(model, pictures(3, 24, 48))
    width, steps = 3, 5
    generator = torch.Generator().manual_seed(0)
    items, pasts = torch.arange(3), torch.full((9, 0), 0)
    state, tokens = model.start(memory, width), torch.full((9,), model.begin)
    for step in range(steps):
        pasts = torch.cat([pasts, tokens[:, None]], dim=1)
        log_probs, state = model.step(state, tokens)
        for beam_number in range(width):
            rows = torch.arange(len(items)) * width + beam_number
            alone = Memory(memory.tokens[items], None, memory.tokens[items], memory.frame_mask[items])
            expected = step_by_step(model, alone, pasts[rows])[:, -1]
            torch.testing.assert_close(log_probs[rows], expected, atol=1e-4, rtol=0)
        within = torch.randint(width, (len(items), width), generator=generator)
        beams = (torch.arange(len(items))[:, None] * width + within).flatten()
        state, pasts = state.reorder(beams), pasts[beams]
        tokens = torch.randint(1, 7, (len(beams),), generator=generator)
        if step == 2:
            kept = torch.tensor([0, 2])
            state, items = state.keep(kept), items[kept]
            pasts, tokens = pasts.view(3, width, -1)[kept].flatten(0, 1), tokens.view(3, width)[kept].flatten()


@torch.no_grad()
def test_keys_and_values_of_a_picture_are_computed_once_and_not_for_each_beam():
    model = small()
    rows: list[int] = []
    for layer in model.decoder.layers:
        layer.encoder_attn.k_proj.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    beam(model, encoded(model, pictures(5, 24, 48)), 4, 1)
    assert rows == [5, 5]


@torch.no_grad()
def test_the_loss_is_the_mean_negative_log_likelihood_a_token():
    model = small()
    codec = Codec("abcdef", 6)
    memory = encoded(model, pictures(3, 24, 48))
    targets = codec.encode_batch(["abc", "f", "abcdef"])
    log_probs = step_by_step(model, memory, targets[:, :-1])
    likelihoods = log_probs.gather(2, targets[:, 1:, None]).squeeze(2)[targets[:, 1:] != codec.pad]
    assert len(likelihoods) == 3 + 1 + 6 + 3
    assert model.loss(memory, targets).item() == pytest.approx(-likelihoods.mean().item(), abs=1e-5)


@torch.no_grad()
def test_the_loss_of_a_published_model_is_that_of_transformers(tmp_path):
    theirs = tiny("base")
    ours = loaded(theirs, tmp_path)
    frames = pictures(2)
    targets = rows_of((2, 5, 6, 2, 1), (2, 7, 8, 9, 2))
    labels = targets[:, 1:].masked_fill(targets[:, 1:] == 1, -100)
    expected = theirs(frames[:, 0], decoder_input_ids=targets[:, :-1], labels=labels).loss
    assert ours.loss(encoded(ours, frames), targets).item() == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_a_new_vocabulary_never_writes_begin_or_pad():
    model = small()
    log_probs = step_by_step(model, encoded(model, pictures(2, 24, 48)), rows_of((7, 1, 2), (7, 3, 3)))
    assert torch.isinf(log_probs[..., [model.begin, model.pad]]).all()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("vocabulary", ["published", "charset"])
def test_decoder_only_training_leaves_the_encoder_alone(tmp_path, vocabulary):
    tiny("base").save_pretrained(tmp_path)
    tokens = Subwords() if vocabulary == "published" else Codec("abc", 3)
    settings = TrOCRSettings(source=str(tmp_path), image=(SIDE, SIDE), vocabulary=vocabulary, train="decoder")
    model = TrOCR(settings, tokens).train()
    assert not model.encoder.training
    assert model.decoder.training
    targets = rows_of((tokens.begin, 3, tokens.end), (tokens.begin, 3, tokens.end))
    model.loss(encoded(model, pictures(2)), targets).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_every_parameter_of_full_training_learns_and_belongs_to_one_part(stem):
    model = small(scales=2, encoder={**VISION, "stem": stem})
    model.train()
    model.loss(encoded(model, pictures(2, 24, 48)), Codec("abcdef", 6).encode_batch(["ab", "fed"])).backward()
    parts = model.parts()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert sum(name.startswith(tuple(f"{prefix}." for prefix in names)) for names in parts.values()) == 1


@torch.no_grad()
def test_fused_depths_start_as_the_deepest_alone():
    one, three = small(scales=1, encoder={**VISION, "depth": 3}), small(scales=3, encoder={**VISION, "depth": 3})
    missing, unexpected = three.load_state_dict(one.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"fusion"}
    for name, parameter in three.fusion.named_parameters():
        if name.startswith("projections"):
            parameter.zero_()
    frames = pictures(2, 24, 48)
    torch.testing.assert_close(encoded(three, frames).tokens, encoded(one, frames).tokens, atol=1e-6, rtol=0)
    three.fusion.projections[0].weight.normal_()
    assert (encoded(three, frames).tokens - encoded(one, frames).tokens).abs().max() > 0.1


@torch.no_grad()
def test_training_and_reading_compute_the_same():
    model = small(resize="keep-aspect", image=(32, 64))
    targets = Codec("abcdef", 6).encode_batch(["ab", "fed"])
    frames, sizes = pictures(2, 32, 64), [(32, 20), (9, 64)]
    reading = model.loss(encoded(model, frames, sizes), targets)
    model.train()
    with torch.enable_grad():
        training = model.loss(encoded(model, frames, sizes), targets)
    assert training.item() == pytest.approx(reading.item(), abs=1e-5)


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_a_small_one_learns_to_read_a_handful_of_pictures(stem):
    torch.manual_seed(0)
    codec = Codec("abcdef", 4)
    vision, text = {**VISION, "width": 32, "stem": stem}, {**TEXT, "width": 32}
    settings = TrOCRSettings(encoder=vision, decoder=text, image=(24, 48), vocabulary="charset")
    model = TrOCR(settings, codec)
    texts = ["abc", "f", "dead", "", "fade", "be"]
    frames = torch.full((6, 1, 3, 24, 48), -1.0)
    for item, text in enumerate(texts):  # a bright bar for each letter, the shorter the later in the alphabet
        for place, letter in enumerate(text):
            frames[item, ..., 4 * "abcdef".index(letter) :, 12 * place : 12 * place + 8] = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(encoded(model, frames), codec.encode_batch(texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = search(model, encoded(model, frames), DecodeSettings(search="beam", width=4))
    assert [codec.decode(item[0].tokens) for item in found] == texts


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
