"""Pictures of any size to the rows of pixels that the vision tower of Qwen2-VL reads (arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PATCH = 14  # pixels along a side of a patch
MERGE = 2  # patches along a side of what becomes one image token
FRAMES = 2  # moments in a patch: a still image is seen twice
STEP = PATCH * MERGE  # pixels along a side of an image token


def patchify(pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures (3, H, W), sides multiples of STEP → patches (P, 3 · FRAMES · PATCH²) and grids (N, 3) long.

    The patches of all pictures follow each other, those of an image token side by side; a grid is 1, rows and columns in
    patches. Raises ValueError for a side that is no multiple.
    """
    grids = [(1, *_rows_and_columns(picture)) for picture in pictures]
    patches = torch.cat([_patches(picture) for picture in pictures])
    return patches, torch.tensor(grids, device=patches.device)


def expect_geometry(source: str, vision: PretrainedConfig) -> None:
    """Raises ValueError if a vision tower reads other patches than these."""
    found = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if found != (PATCH, MERGE, FRAMES):
        raise ValueError(
            f"{source} has patches of {found[0]} pixels, {found[1]} × {found[1]} of them to an image token and "
            f"{found[2]} moments; this recognizer reads patches of {PATCH}, {MERGE} × {MERGE} and {FRAMES}"
        )


def _rows_and_columns(picture: Tensor) -> tuple[int, int]:
    height, width = picture.shape[-2:]
    if height % STEP or width % STEP or not height or not width:
        raise ValueError(
            f"a picture of {width} × {height} pixels cannot be cut into squares of {STEP}: let the image processor of "
            "the recognizer's settings.input resize it"
        )
    return height // PATCH, width // PATCH


def _patches(picture: Tensor) -> Tensor:
    rows, columns = (side // MERGE for side in _rows_and_columns(picture))
    cut = picture.reshape(3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    ordered = cut.permute(1, 4, 2, 5, 0, 3, 6)  # (rows, columns, MERGE, MERGE, 3, PATCH, PATCH)
    twice = ordered.unsqueeze(5).expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
    return twice.reshape(rows * columns * MERGE**2, -1)
