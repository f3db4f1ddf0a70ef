"""A Vision Transformer over single frames, with a patch embedding or a convolutional stem."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from glyphrun.models.multiscale import DepthFusion, depths
from glyphrun.models.waves import place_waves


class EncoderSettings(BaseModel):
    """Sizes of a frame encoder; height, width and patch in pixels. scales: how many depths make up its features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: tuple[int, int] = (32, 128)
    patch: tuple[int, int] = (4, 8)
    stem: Literal["patch", "convolution"] = "patch"
    width: int = Field(384, ge=8)
    depth: int = Field(12, ge=1)
    heads: int = Field(6, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    drop_path: float = Field(0.0, ge=0, lt=1)
    scales: int = Field(1, ge=1, le=3)

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncoderSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        depths(self.depth, self.scales)
        for side, image, patch in zip(("height", "width"), self.image, self.patch, strict=True):
            if image % patch:
                raise ValueError(f"the image's {side} {image} is not a multiple of the patch's {patch}")
            if self.stem == "convolution" and patch % 4:
                raise ValueError(
                    f"a convolutional stem shrinks by 4, and the patch's {side} {patch} is no multiple of it"
                )
        return self


class ConvolutionalStem(PatchEmbed):
    """Two convolutions at half and two at a quarter of the resolution, then a projection of what is left of each patch.

    At small width and short training it learns several times faster than a linear patch embedding (arXiv 2106.14881).
    """

    def __init__(self, *args: Any, embed_dim: int, patch_size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(*args, embed_dim=embed_dim, patch_size=patch_size, **kwargs)
        first, second = max(embed_dim // 4, 8), max(embed_dim // 2, 16)
        rest = (patch_size[0] // 4, patch_size[1] // 4)
        self.proj = nn.Sequential(
            *_convolution(3, first, (2, 2)),
            *_convolution(first, first, (1, 1)),
            *_convolution(first, second, (2, 2)),
            *_convolution(second, second, (1, 1)),
            *_convolution(second, embed_dim, rest),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )


def _convolution(inputs: int, outputs: int, stride: tuple[int, int]) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class FrameEncoder(VisionTransformer):
    """timm's Vision Transformer without class token, pooling or head: (N, 3, H, W) → (N, S, D)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(
            img_size=settings.image,
            patch_size=settings.patch,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            mlp_ratio=settings.mlp_ratio,
            drop_path_rate=settings.drop_path,
            num_classes=0,
            global_pool="",
            class_token=False,
            embed_layer=ConvolutionalStem if settings.stem == "convolution" else PatchEmbed,
        )
        self.shallow_blocks = [block - 1 for block in depths(settings.depth, settings.scales)[:-1]]
        if self.shallow_blocks:
            self.depth_fusion = DepthFusion(settings.width, settings.scales)
        if settings.stem == "convolution":
            # Places that look alike at first hold a short training back for hundreds of steps.
            with torch.no_grad():
                self.pos_embed.copy_(0.5 * place_waves(self.patch_embed.grid_size, settings.width))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The fused kernel's backward pass is the slow part of training on a CPU, and only there.
        fused = x.is_cuda or not torch.is_grad_enabled()
        if not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last)  # a third off a convolutional stem on a CPU
        for block in self.blocks:
            block.attn.fused_attn = fused
        if not self.shallow_blocks:
            return self.forward_features(x)
        deepest, shallower = self.forward_intermediates(x, indices=self.shallow_blocks, output_fmt="NLC")
        return self.depth_fusion([*shallower, deepest])
