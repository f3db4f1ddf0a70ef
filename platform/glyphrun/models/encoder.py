"""A Vision Transformer over single frames, with a patch embedding or a convolutional stem."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from glyphrun.models.multiscale import DepthFusion, depths
from glyphrun.models.vision_transformer import NORM_EPSILON, Block, initialise, normal_
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


class PatchEmbedding(nn.Module):
    """A linear projection of each patch of a frame."""

    def __init__(self, patch: tuple[int, int], width: int) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (N, 3, H, W) → (N, S, D), a row of patches after another."""
        return self.proj(frames).flatten(2).transpose(1, 2)


class ConvolutionalStem(PatchEmbedding):
    """Two convolutions at half and two at a quarter of the resolution, then a projection of what is left of each patch.

    At small width and short training it learns several times faster than a linear patch embedding (arXiv 2106.14881).
    """

    def __init__(self, patch: tuple[int, int], width: int) -> None:
        super().__init__(patch, width)  # draws weights that are replaced: a seed's others come after these
        first, second = max(width // 4, 8), max(width // 2, 16)
        self.proj = nn.Sequential(
            *_convolution(3, first, (2, 2)),
            *_convolution(first, first, (1, 1)),
            *_convolution(first, second, (2, 2)),
            *_convolution(second, second, (1, 1)),
            *_convolution(second, width, (patch[0] // 4, patch[1] // 4)),
            nn.Conv2d(width, width, 1),
        )


def _convolution(inputs: int, outputs: int, stride: tuple[int, int]) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class FrameEncoder(nn.Module):
    """A Vision Transformer without class token, pooling or head: (N, 3, H, W) → (N, S, D)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        grid = (settings.image[0] // settings.patch[0], settings.image[1] // settings.patch[1])
        stem = ConvolutionalStem if settings.stem == "convolution" else PatchEmbedding
        self.image = settings.image
        self.patch_embed = stem(settings.patch, settings.width)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], settings.width))
        # The deeper a block, the more frames pass it by.
        shares = torch.linspace(0, settings.drop_path, settings.depth).tolist()
        self.blocks = nn.Sequential(
            *(Block(settings.width, settings.heads, settings.mlp_ratio, share) for share in shares)
        )
        self.norm = nn.LayerNorm(settings.width, eps=NORM_EPSILON)
        normal_(self.pos_embed)  # timm's order: a seed keeps its weights
        initialise(self.blocks)
        self.shallow_blocks = [block - 1 for block in depths(settings.depth, settings.scales)[:-1]]
        if self.shallow_blocks:
            self.depth_fusion = DepthFusion(settings.width, settings.scales)
        if settings.stem == "convolution":
            # Places that look alike at first hold a short training back for hundreds of steps.
            with torch.no_grad():
                self.pos_embed.copy_(0.5 * place_waves(grid, settings.width))

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (N, 3, H, W) of the image's size → (N, S, D). Raises ValueError for frames of another size."""
        if frames.shape[2:] != self.image:
            has, wants = (f"{height} by {width}" for height, width in (frames.shape[2:], self.image))
            raise ValueError(f"frames of {has} pixels: this encoder takes {wants} (height by width)")
        if not torch.is_grad_enabled():
            frames = frames.contiguous(memory_format=torch.channels_last)  # a third off a convolutional stem on a CPU
        x = self.patch_embed(frames) + self.pos_embed
        shallower: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.shallow_blocks:
                shallower.append(x)
        x = self.norm(x)
        return self.depth_fusion([*shallower, x]) if shallower else x
