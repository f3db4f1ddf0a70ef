"""A published Vision Transformer on pictures of any size and aspect, in which padding is never looked at.

Its own forward pass wants squares. Here its layers run one after another over what was embedded as they expect it, with
a mask that hides the patches of padding. Packing the patches of many pictures into rows without gaps would need the same
mask (who belongs to whom), and pictures of one batch are of similar size already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glyphrun.models.trocr_stem import ConvolutionalStem, inside

Grid = tuple[int, int]


def hidden_states(
    vit: Any, frames: Tensor, sizes: Tensor | None, blocks: tuple[int, ...]
) -> tuple[list[Tensor], Tensor | None]:
    """Features after some blocks, counted from 1, the last one's after the norm: (N, S, D) each, and where they exist.

    vit: a ViTModel or a DeiTModel of transformers. frames: (N, 3, H, W); sizes: (N, 2) long, height and width of the
    picture at the left and the top of each frame, None if all fill theirs. The mask is (N, S) bool, None if all exist.
    """
    embeddings = vit.embeddings
    patch: Grid = tuple(embeddings.patch_embeddings.patch_size)
    rows, columns = frames.shape[-2] // patch[0], frames.shape[-1] // patch[1]
    places = _places(embeddings, (rows, columns))  # (1, specials + rows · columns, D)
    specials = places.shape[1] - rows * columns
    seen = None
    if sizes is not None:
        frames = torch.where(inside(sizes, frames.shape[-2], frames.shape[-1]).unsqueeze(1), frames, 0.0)
        filled = -(-sizes // sizes.new_tensor(patch))  # patches that hold any of the picture, (N, 2)
        high, wide = filled.amax(0).tolist()
        frames = frames[..., : high * patch[0], : wide * patch[1]]  # what is padding in all of them is left out
        grid = places[:, specials:].unflatten(1, (rows, columns))[:, :high, :wide].flatten(1, 2)
        places = torch.cat([places[:, :specials], grid], dim=1)
        seen = F.pad(inside(filled, high, wide).flatten(1), (specials, 0), value=True)  # (N, S)
        seen = None if bool(seen.all()) else seen
    first = [embeddings.cls_token, *([embeddings.distillation_token] if specials == 2 else [])]
    stem = embeddings.patch_embeddings.projection
    # (N, high · wide, D)
    patches = stem(frames, sizes) if isinstance(stem, ConvolutionalStem) else embeddings.patch_embeddings(frames)
    features = torch.cat([token.expand(len(frames), -1, -1) for token in first] + [patches], dim=1) + places
    features = embeddings.dropout(features)
    hidden = None
    if seen is not None:
        hidden = features.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(features.dtype).min)[:, None, None, :]
    found = []
    for number, layer in enumerate(vit.layers, start=1):
        features = layer(features, hidden)
        if number in blocks:
            found.append(features)
    found[-1] = vit.layernorm(found[-1])
    return found, seen


def _places(embeddings: Any, grid: Grid) -> Tensor:
    """Position embeddings of the special tokens and of a grid of patches, interpolated if it is not the trained one."""
    trained = embeddings.patch_embeddings
    native = tuple(side // patch for side, patch in zip(trained.image_size, trained.patch_size, strict=True))
    positions: Tensor = embeddings.position_embeddings
    if grid == native:
        return positions
    specials = positions.shape[1] - native[0] * native[1]
    square = positions[:, specials:].unflatten(1, native).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid, mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :specials], resized.flatten(2).transpose(1, 2)], dim=1)
