"""The frame encoder computes what timm's does, without the seconds that a library of a thousand others takes to import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from glyphrun.models.encoder import EncoderSettings, FrameEncoder
from glyphrun.models.multiscale import depths

SIZES = {"image": (16, 24), "patch": (4, 8), "width": 24, "depth": 3, "heads": 2}


def timms(settings: EncoderSettings) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    made = VisionTransformer(
        img_size=settings.image,
        patch_size=settings.patch,
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=settings.heads,
        drop_path_rate=settings.drop_path,
        num_classes=0,
        global_pool="",
        class_token=False,
    )
    for block in made.blocks:
        block.attn.fused_attn = False
    return made


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_seed_gives_the_weights_features_and_gradients_that_it_gives_in_timm(drop_path):
    settings = EncoderSettings(**SIZES, drop_path=drop_path)
    found: list[nn.Module] = []
    for make in (FrameEncoder, timms):
        torch.manual_seed(0)
        found.append(make(settings))
    ours, theirs = found
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)

    frames, features = torch.randn(6, 3, *settings.image), []
    for encoder in found:
        torch.manual_seed(1)
        features.append(encoder(frames))
        features[-1].square().mean().backward()
    torch.testing.assert_close(*features, rtol=0, atol=1e-5)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-5, msg=name)

    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(frames), theirs.eval()(frames), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stem", "scales"), [("convolution", 1), ("patch", 2), ("convolution", 3)])
def test_what_is_added_to_it_stands_before_and_behind_the_same_blocks(stem, scales):
    settings = EncoderSettings(**{**SIZES, "depth": 4}, stem=stem, scales=scales)
    ours, theirs = FrameEncoder(settings).eval(), timms(settings).eval()
    theirs.patch_embed = ours.patch_embed
    own = {name: value for name, value in ours.state_dict().items() if not name.startswith("depth_fusion")}
    theirs.load_state_dict(own)
    frames = torch.randn(2, 3, *settings.image)
    with torch.inference_mode():
        shallow = [block - 1 for block in depths(settings.depth, scales)[:-1]]
        deepest, shallower = theirs.forward_intermediates(frames, indices=shallow or [0], output_fmt="NLC")
        expected = ours.depth_fusion([*shallower, deepest]) if shallow else deepest
        torch.testing.assert_close(ours(frames), expected, rtol=0, atol=1e-5)


def test_some_frames_pass_a_deep_block_by_in_training_and_none_at_inference():
    encoder = FrameEncoder(EncoderSettings(**SIZES, drop_path=0.5))
    last, places = encoder.blocks[-1], torch.randn(64, 12, 24)
    with torch.no_grad():
        untouched = (last(places) == places).flatten(1).all(1)
        assert not (encoder.eval().blocks[-1](places) == places).flatten(1).all(1).any()
    assert 4 <= untouched.sum() <= 32  # both of its sums are left out for a quarter


def test_frames_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match="frames of 24 by 16 pixels: this encoder takes 16 by 24 .height by width."):
        FrameEncoder(EncoderSettings(**SIZES))(torch.zeros(1, 3, 24, 16))


def test_a_recognizer_is_built_and_read_without_timm_and_without_a_compiler():
    """Each process that reads starts in less than half the time; what is needed by few is imported by them."""
    script = """if True:
        import sys
        import torch
        from glyphrun.models.zoo import build, recognizer_settings
        from glyphrun.text import DIGITS, Codec
        with torch.inference_mode():
            build(recognizer_settings("parseq-nano", {}), Codec(DIGITS, 2)).eval().encoder(torch.zeros(1, 3, 40, 40))
        print(*sorted({"timm", "torchvision", "torch._dynamo", "transformers", "peft"} & set(sys.modules)))
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
