from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from glyphrun.models.encoder import EncoderSettings, FrameEncoder
from glyphrun.models.multiscale import DepthFusion, depths


@pytest.mark.parametrize(
    ("depth", "scales", "blocks"),
    [(12, 1, (12,)), (12, 2, (6, 12)), (12, 3, (4, 8, 12)), (5, 3, (1, 3, 5)), (2, 2, (1, 2))],
)
def test_depths_are_spread_over_the_encoder_and_end_at_its_last_block(depth, scales, blocks):
    assert depths(depth, scales) == blocks


def test_more_scales_than_blocks_are_refused():
    with pytest.raises(ValueError, match="scales 3 cannot be taken from an encoder of 2 blocks: choose 1 to 2"):
        depths(2, 3)


def test_a_new_fusion_is_the_identity_on_the_deepest_feature_and_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    fusion = DepthFusion(8, 3)
    assert torch.equal(torch.get_rng_state(), state)
    features = list(torch.randn(3, 2, 5, 8))
    assert torch.equal(fusion(features), features[-1])


def test_one_scale_builds_nothing():
    feature = torch.randn(2, 5, 8)
    assert not DepthFusion(8, 1).state_dict()
    assert DepthFusion(8, 1)([feature]) is feature


def test_every_depth_is_learned_from_the_first_step_on():
    torch.manual_seed(0)
    fusion = DepthFusion(8, 3)
    features = [torch.randn(2, 5, 8) for _ in range(3)]
    target = features[0].roll(1, -1)
    before = (fusion(features) - target).square().mean()
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (fusion(features) - target).square().mean()
        loss.backward()
        assert all(projection.weight.grad.abs().sum() > 0 for projection in fusion.projections)
        optimizer.step()
    assert loss < before / 4


def test_the_number_of_features_must_be_that_of_the_scales():
    with pytest.raises(ValueError, match="zip"):
        DepthFusion(8, 2)([torch.zeros(1, 1, 8)])


SETTINGS = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=3, heads=2)


def test_an_encoder_of_one_scale_has_no_weights_for_it():
    assert not [name for name in FrameEncoder(SETTINGS).state_dict() if "depth" in name]


@torch.no_grad()
@pytest.mark.parametrize("scales", [2, 3])
def test_a_new_encoder_of_several_scales_reads_as_one_of_the_same_seed_without(scales):
    frames = torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    plain = FrameEncoder(SETTINGS).eval()
    torch.manual_seed(0)
    fused = FrameEncoder(SETTINGS.model_copy(update={"scales": scales})).eval()
    assert torch.equal(fused(frames), plain(frames))
    assert {name: weight.shape for name, weight in plain.state_dict().items()}.items() <= {
        name: weight.shape for name, weight in fused.state_dict().items()
    }.items()


@torch.no_grad()
def test_an_encoder_adds_the_blocks_at_the_named_depths():
    torch.manual_seed(0)
    encoder = FrameEncoder(SETTINGS.model_copy(update={"depth": 4, "scales": 3})).eval()  # blocks 1, 2 and 4
    nn.init.eye_(encoder.depth_fusion.projections[0].weight)
    nn.init.eye_(encoder.depth_fusion.projections[1].weight)
    outputs: list[torch.Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    features = encoder(torch.randn(2, 3, 16, 16))
    assert features.shape == (2, 4, 16)
    expected = encoder.norm(outputs[3]) + sum(torch.layer_norm(outputs[block], (16,)) for block in (0, 1))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_settings_refuse_more_scales_than_blocks_or_than_three():
    with pytest.raises(ValidationError, match="scales 3 cannot be taken from an encoder of 2 blocks"):
        EncoderSettings(depth=2, scales=3)
    with pytest.raises(ValidationError, match="scales"):
        EncoderSettings(scales=4)
