"""What a TrOCR makes of pictures of any shape, of beams and of a new vocabulary, and that it learns."""

from __future__ import annotations

import pytest
import torch

from glyphrun.decoding.search import beam, search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.recognizer import Memory
from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.text import Codec
from tiny_trocr import SIDE, TEXT, VISION, Subwords, encoded, loaded, pictures, rows_of, small, step_by_step, tiny


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
def test_a_new_vocabulary_never_writes_begin_or_pad():
    model = small()
    log_probs = step_by_step(model, encoded(model, pictures(2, 24, 48)), rows_of((7, 1, 2), (7, 3, 3)))
    assert torch.isinf(log_probs[..., [model.begin, model.pad]]).all()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)


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
