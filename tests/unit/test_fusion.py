from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.fusion import Fusion, TemporalFusion
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import Codec

KINDS = get_args(Fusion)
TOGETHER = [kind for kind in KINDS if kind != "none"]


def trained(kind: Fusion, width: int = 4) -> TemporalFusion:
    """A fusion whose every weight matters."""
    torch.manual_seed(1)
    fusion = TemporalFusion(kind, width)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return fusion


def gated(legibilities: list[float]) -> tuple[TemporalFusion, Tensor]:
    """A fusion and frames (N, 2 places, 3) that its gate finds as legible as said; the last two features are free."""
    fusion = TemporalFusion("mean", 3)
    with torch.no_grad():
        fusion.gate.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        fusion.gate.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(len(legibilities), 2, 3, generator=generator)
    frames[:, :, 0] = torch.tensor(legibilities).logit()[:, None]
    return fusion, frames


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_fusion_gives_frames_equal_weight_whatever_their_order(kind):
    torch.manual_seed(0)
    fusion, frames = TemporalFusion(kind, 4), torch.randn(3, 5, 4)
    if kind == "attention":
        nn.init.zeros_(fusion.legibility.weight)
    tokens = fusion(frames, torch.ones(1, 3, dtype=torch.bool)).tokens
    expected = {
        "none": frames,
        "concatenate": frames.flatten(0, 1)[None],
        "attention": frames.mean(0, keepdim=True),
        "mean": frames.mean(0, keepdim=True),
    }
    torch.testing.assert_close(tokens, expected[kind], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["concatenate", "mean"])
def test_a_new_fusion_draws_no_random_numbers(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    TemporalFusion(kind, 4)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_do_not_exist_change_no_feature_wherever_they_stand(kind):
    fusion, frames = trained(kind), torch.randn(5, 2, 4)  # an item of two frames and one of three
    tight = fusion(frames, torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool))
    loose = fusion(frames, torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0]], dtype=torch.bool))
    if kind == "concatenate":
        for item, places in enumerate([4, 6]):
            one, other = (memory.tokens[item][memory.mask[item]] for memory in (tight, loose))
            assert len(one) == places
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(tight.tokens, loose.tokens, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", TOGETHER)
def test_a_still_image_is_its_own_features_alone_and_beside_tracklets(kind):
    fusion, frames = trained(kind), torch.randn(4, 2, 4)
    alone = fusion(frames[:1], torch.ones(1, 1, dtype=torch.bool))
    assert torch.equal(alone.tokens, frames[:1])
    beside = fusion(frames, torch.tensor([[1, 0, 0], [1, 1, 1]], dtype=torch.bool))
    torch.testing.assert_close(beside.tokens[0, :2], frames[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_order_of_frames_carries_weight_in_concatenate_alone():
    for kind in TOGETHER:
        fusion, frames, mask = trained(kind), torch.randn(3, 2, 4), torch.ones(1, 3, dtype=torch.bool)
        forward, backward = fusion(frames, mask).tokens, fusion(frames.flip(0), mask).tokens
        if kind == "concatenate":
            backward = backward.unflatten(1, (3, 2)).flip(1).flatten(1, 2)  # the same frames at the same places
        assert torch.allclose(forward, backward, atol=1e-6) == (kind != "concatenate")


@torch.no_grad()
@pytest.mark.parametrize(
    ("frames", "moments"),
    [(1, []), (2, [0, 7]), (3, [0, 3.5, 7]), (8, list(range(8))), (15, [half / 2 for half in range(15)])],
)
def test_the_frame_embedding_is_stretched_from_the_first_frame_to_the_last(frames, moments):
    fusion = TemporalFusion("concatenate", 1)
    fusion.frame_embedding.table.copy_(10 + torch.arange(8.0)[:, None])
    tokens = fusion(torch.zeros(frames, 1, 1), torch.ones(1, frames, dtype=torch.bool)).tokens
    assert tokens.flatten().tolist() == pytest.approx([10 + moment for moment in moments] or [0])


@pytest.mark.parametrize("frames", [2, 4, 20])
def test_every_row_near_a_frame_of_the_embedding_is_trained(frames):
    fusion = TemporalFusion("concatenate", 1)
    fusion(torch.zeros(frames, 1, 1), torch.ones(1, frames, dtype=torch.bool)).tokens.sum().backward()
    reached = fusion.frame_embedding.table.grad.flatten() > 0
    assert reached[0] and reached[-1]
    assert int(reached.sum()) == {2: 2, 4: 6, 20: 8}[frames]


@torch.no_grad()
def test_the_mean_leaves_out_frames_whose_legibility_is_under_a_half():
    fusion, frames = gated([0.9, 0.49, 0.51])
    memory = fusion(frames, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(memory.tokens[0], (frames[0] + frames[2]) / 2)
    assert memory.tokens.shape == (1, 2, 3)
    assert memory.mask is None


@torch.no_grad()
def test_the_mean_is_over_all_frames_if_none_is_legible():
    fusion, frames = gated([0.1, 0.2, 0.9, 0.3])
    tokens = fusion(frames, torch.tensor([[1, 1, 0], [1, 1, 0]], dtype=torch.bool)).tokens
    torch.testing.assert_close(tokens[0], (frames[0] + frames[1]) / 2)
    torch.testing.assert_close(tokens[1], frames[2])


def test_the_gate_computes_in_training_what_it_computes_in_reading():
    fusion, frames = gated([0.9, 0.3, 0.6, 0.2])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    trained_on = fusion.train()(frames, mask).tokens
    with torch.no_grad():
        assert torch.equal(fusion.eval()(frames, mask).tokens, trained_on)


def test_the_gradient_reaches_frames_that_are_left_out_so_that_they_can_come_back():
    for legibilities in ([0.9, 0.3, 0.6], [0.2, 0.3, 0.1]):
        fusion, frames = gated(legibilities)
        frames.requires_grad_()
        fusion(frames, torch.ones(1, 3, dtype=torch.bool)).tokens[..., 1:].square().sum().backward()
        assert (frames.grad[:, :, 0].abs() > 1e-4).all()  # the feature that the gate alone looks at


def test_a_gate_learns_which_frames_to_leave_out():
    """Frames that say nothing carry a mark; what the others show is wanted without them."""
    torch.manual_seed(0)
    fusion = TemporalFusion("mean", 4)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.05)
    mask = torch.ones(32, 4, dtype=torch.bool)
    for _ in range(400):
        frames = torch.randn(32, 4, 1, 4)
        wanted = torch.randn(32, 1, 3)
        frames[..., 1:] = wanted[:, None] + 0.1 * frames[..., 1:]
        noise = (torch.rand(32, 4) < 0.4) & (torch.arange(4) > 0)  # the first is always good
        frames[noise] = 3 * torch.randn(int(noise.sum()), 1, 4)
        frames[..., 0] = noise[..., None].float() * 2 - 1
        memory = fusion(frames.flatten(0, 1), mask)
        loss = (memory.tokens[..., 1:] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = fusion.gate(frames.flatten(0, 1), mask)
    assert (weights[noise] == 0).float().mean() > 0.95
    assert (weights[~noise] > 0).float().mean() > 0.95
    assert loss < 0.05  # the mean over all frames is off by more than 1


ENCODER = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=2, heads=2)


@pytest.mark.parametrize("kind", TOGETHER)
@pytest.mark.parametrize("scales", [1, 2])
def test_every_recognizer_reads_and_trains_with_every_fusion_and_padding_changes_no_answer(kind, scales):
    encoder = ENCODER.model_copy(update={"scales": scales})
    for make in (
        lambda: PARSeq(PARSeqSettings(encoder=encoder, decoder_heads=2, fusion=kind, dropout=0.0), 10, 2),
        lambda: QueryDigits(QueryDigitsSettings(encoder=encoder, decoder_heads=2, fusion=kind, dropout=0.0)),
    ):
        torch.manual_seed(0)
        model, generator = make(), torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "fusion" in name:  # of frames and of depths, which start without effect
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        frames, mask = torch.randn(2, 3, 3, 16, 16), torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
        noisy = torch.cat(
            [frames.masked_fill(~mask[:, :, None, None, None], 99.0), torch.full((2, 2, 3, 16, 16), -99.0)], 1
        )
        targets = torch.tensor([[11, 3, 4, 0], [11, 8, 0, 12]])
        loss = model.loss(model.encode(frames, mask), targets)
        padded = model.loss(model.encode(noisy, torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], 1)), targets)
        torch.testing.assert_close(loss, padded, atol=1e-5, rtol=0)
        loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("name", "published", "width"), [("parseq-tiny", 6_018_143, 192), ("parseq-small", 23_832_671, 384)]
)
def test_a_temporal_parseq_is_the_published_one_and_its_fusion(name, published, width):
    latin = Codec("".join(chr(33 + place) for place in range(94)), 25)
    for fusion, own in {"concatenate": 8 * width, "attention": width + 1, "mean": width + 1}.items():
        model = build(recognizer_settings(name, {"fusion": fusion}), latin)
        assert sum(parameter.numel() for parameter in model.parameters()) == published + own
