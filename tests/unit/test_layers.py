from __future__ import annotations

import pytest
import torch
from torch import nn

from glyphrun.models.encoder import EncoderSettings, FrameEncoder
from glyphrun.models.fusion import TemporalFusion, place_frames
from glyphrun.models.layers import Attention, DecoderLayer
from glyphrun.models.parseq import PARSeq, PARSeqSettings

ENCODER = EncoderSettings(image=(16, 24), patch=(8, 8), width=16, depth=1, heads=2)


def parseq(fusion: str) -> PARSeq:
    torch.manual_seed(1)
    model = PARSeq(PARSeqSettings(encoder=ENCODER, decoder_heads=2, fusion=fusion), 10, 2).eval()
    if fusion == "attention":
        with torch.no_grad():
            model.fusion.legibility.weight.mul_(5)  # frames count differently
    return model


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torchs_own_with_the_same_weights(masked):
    torch.manual_seed(0)
    ours, theirs = Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [
        (name, p.shape) for name, p in theirs.named_parameters()
    ]
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    query, source = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    mask = torch.rand(5, 7) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    expected, _ = theirs(query, source, source, attn_mask=None if mask is None else ~mask, need_weights=False)
    torch.testing.assert_close(ours(query, ours.keys_values(source), mask), expected, atol=1e-5, rtol=0)


def test_training_and_reading_attend_alike():
    """Two paths compute the attention, one for gradients on a processor and the fused one."""
    torch.manual_seed(0)
    attention = Attention(16, 2)
    query, source, mask = torch.randn(3, 4, 16), torch.randn(3, 6, 16), torch.rand(3, 1, 4, 6) < 0.7
    mask[..., 0] = True
    trained = attention(query, attention.keys_values(source), mask)
    with torch.no_grad():
        read = attention(query, attention.keys_values(source), mask)
    torch.testing.assert_close(trained.detach(), read, atol=1e-5, rtol=0)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width of 10 cannot be split over 3 heads"):
        Attention(10, 3)


@torch.no_grad()
def test_beams_of_an_item_attend_to_that_items_memory():
    torch.manual_seed(0)
    layer = DecoderLayer(16, 2, 2.0, 0.0).eval()
    memory, queries = torch.randn(3, 5, 16), torch.randn(12, 1, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)[:, None, None, :]
    shared = layer.cross_attn_many(queries, layer.cross_attn.keys_values(memory), mask)
    repeated = layer.cross_attn.keys_values(memory.repeat_interleave(4, 0))
    own = layer.cross_attn(queries, repeated, mask.repeat_interleave(4, 0))
    torch.testing.assert_close(shared, own, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_either_stem_gives_one_feature_a_patch(stem):
    encoder = FrameEncoder(ENCODER.model_copy(update={"stem": stem})).eval()
    assert encoder(torch.randn(2, 3, 16, 24)).shape == (2, 6, 16)


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_a_frame_is_encoded_alike_in_training_and_reading_and_in_any_company(stem):
    torch.manual_seed(0)
    encoder = FrameEncoder(ENCODER.model_copy(update={"stem": stem})).eval()
    frames = torch.randn(5, 3, 16, 24)
    with torch.no_grad():
        read, alone = encoder(frames), encoder(frames[2:3])
    torch.testing.assert_close(encoder(frames).detach(), read, atol=1e-5, rtol=0)
    torch.testing.assert_close(read[2:3], alone, atol=1e-5, rtol=0)


def test_frames_are_placed_where_the_mask_says():
    mask = torch.tensor([[True, False], [True, True]])
    placed = place_frames(torch.arange(1.0, 4.0).view(3, 1, 1), mask)
    assert placed.flatten().tolist() == [1, 0, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["none", "attention", "concatenate"])
def test_frames_that_do_not_exist_never_change_a_memory(fusion):
    model = parseq(fusion)
    frames, mask = torch.randn(2, 3, 3, 16, 24), torch.tensor([[True, True, False], [True, True, True]])
    other = frames.clone()
    other[~mask] = 1e3
    longer = torch.cat([other, torch.full((2, 4, 3, 16, 24), -1e3)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    plain, padded = model.encode(frames, mask), model.encode(longer, longer_mask)
    torch.testing.assert_close(padded.frame_tokens, plain.frame_tokens, atol=1e-6, rtol=0)
    if fusion == "concatenate":
        places = plain.tokens.shape[1]
        torch.testing.assert_close(padded.tokens[:, :places], plain.tokens, atol=1e-6, rtol=0)
        assert not padded.mask[:, places:].any()
        assert torch.equal(padded.mask[:, :places], plain.mask)
    else:
        torch.testing.assert_close(padded.tokens, plain.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.parallel(padded), model.parallel(plain), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["attention", "concatenate"])
def test_a_tracklet_may_be_far_longer_than_any_in_training(fusion):
    model = parseq(fusion)
    frames = torch.randn(1, 2, 3, 16, 24)
    long = frames.repeat(1, 30, 1, 1, 1)  # the same two frames over and over say the same
    once = model.parallel(model.encode(frames, torch.ones(1, 2, dtype=torch.bool)))
    often = model.parallel(model.encode(long, torch.ones(1, 60, dtype=torch.bool)))
    torch.testing.assert_close(often, once, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["none", "attention", "concatenate"])
def test_split_frames_are_what_each_frame_encodes_to_alone(fusion):
    model = parseq(fusion)
    frames, mask = torch.randn(2, 3, 3, 16, 24), torch.tensor([[True, False, False], [True, True, True]])
    each = torch.arange(4).unsqueeze(1)
    split = model.regroup(model.encode(frames, mask), each, torch.ones(4, 1, dtype=torch.bool))
    alone = model.encode(frames[mask][:, None], torch.ones(4, 1, dtype=torch.bool))
    assert split.mask is None
    assert split.frame_mask.shape == (4, 1)
    torch.testing.assert_close(split.tokens, alone.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.parallel(split), model.parallel(alone), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_legible_frame_counts_more():
    fusion = TemporalFusion("attention", 2)
    fusion.legibility.weight.copy_(torch.tensor([[1.0, 0.0]]))
    fusion.legibility.bias.zero_()
    tokens = torch.tensor([[[2.0, 10.0]], [[0.0, 20.0]]])  # (N, S, D): two frames of one place
    fused = fusion(tokens, torch.ones(1, 2, dtype=torch.bool)).tokens
    share = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(fused[0, 0], torch.stack([2 * share, 10 * share + 20 * (1 - share)]))


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["attention", "concatenate"])
def test_regrouped_frames_are_what_they_encode_to_together(fusion):
    model = parseq(fusion)
    frames, mask = torch.randn(3, 3, 3, 16, 24), torch.ones(3, 3, dtype=torch.bool).tril()
    memory = model.encode(frames, mask)  # its frames: 0 | 1 2 | 3 4 5
    rows, kept = torch.tensor([[4, 5], [0, 0]]), torch.tensor([[True, True], [True, False]])
    chosen = model.regroup(memory, rows, kept)
    alone = model.encode(torch.stack([frames[2, 1:], frames[0, :2]]), kept)
    torch.testing.assert_close(chosen.tokens, alone.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(chosen.frame_tokens, alone.frame_tokens, atol=1e-6, rtol=0)
    assert torch.equal(chosen.frame_mask, alone.frame_mask)
