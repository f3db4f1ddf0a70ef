"""From encoded bytes to the pixels that a recognizer reads."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, floor, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from glyphrun.inputs import InputSettings

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 40_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_ASPECT = 200  # of a picture whose size follows a pixel budget, as in the published image processors


class ImageError(ValueError):
    """An image cannot be read; the message names it and says what to do."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, name: str = "image") -> np.ndarray:
    """Read one encoded still image as (H, W, 3) uint8 RGB, upright, on white where it is transparent.

    Raises ImageError when the bytes are empty, cut short, no image of FORMATS, animated, of a depth that has no
    common scale, or when the header states more than `max_pixels` pixels (they are then never decoded).
    """
    if not data:
        raise ImageError(f"{name} is empty; send the bytes of a {_one_of(FORMATS)} file.")
    too_large = f"{name} has more than {max_pixels:,} pixels; make it smaller or raise the limit."
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(too_large) from error
    except Exception as error:  # a broken header fails in many ways, all of them the file's fault
        raise ImageError(f"{name} is not a readable {_one_of(FORMATS)} file; export it again as one.") from error
    with image:
        if image.width * image.height > max_pixels:
            raise ImageError(f"{too_large} It is {image.width} × {image.height}.")
        try:
            # A phone's MPO is a still photo with a preview behind it, not an animation.
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
        except Exception as error:
            raise ImageError(f"{name} is damaged or cut short; send the whole file.") from error
        if animated:
            raise ImageError(f"{name} holds several images; send each frame as a file of its own.")
        try:
            image.load()
        except Exception as error:
            raise ImageError(f"{name} is damaged or cut short; send the whole file.") from error
        _turn_upright(image)
        return np.array(_rgb(image, name))


def encode_image(array: np.ndarray, format: Literal["PNG", "JPEG", "WEBP", "BMP"] = "PNG") -> bytes:
    """Encode (H, W, 3) or (H, W) uint8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format)
    return buffer.getvalue()


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _turn_upright(image: Image.Image) -> None:
    # In place, since what needs no turning would be copied. A picture with a broken orientation stays as it lies.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # 16-bit grey is scaled: Pillow's own conversion clips everything above 255 to white.
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit pixels, whose black and white are unknown; save it with 8 or 16 bits.")
    try:
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name} has the pixel mode {image.mode}; save it as RGB or grey.") from error


@dataclass(frozen=True)
class Frame:
    """One image at a recognizer's input size."""

    pixels: np.ndarray  # (3, H, W) uint8
    size: tuple[int, int]  # height and width of the picture at the left and the top; the rest is padding


@dataclass(frozen=True)
class FrameStack:
    """The frames of one item at a recognizer's input size."""

    pixels: np.ndarray  # (T, 3, H, W) uint8, each frame at the left and the top, the rest padding
    sizes: np.ndarray  # (T, 2) int64, height and width of each picture

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        frames, _, height, width = self.pixels.shape
        return frames, height, width


def stack_frames(frames: Sequence[Frame], padding: int = 0) -> FrameStack:
    """Frames of any sizes, padded to the largest."""
    height, width = (max(frame.pixels.shape[axis] for frame in frames) for axis in (1, 2))
    pixels = np.full((len(frames), 3, height, width), padding, np.uint8)
    for place, frame in zip(pixels, frames, strict=True):
        place[:, : frame.pixels.shape[1], : frame.pixels.shape[2]] = frame.pixels
    return FrameStack(pixels, np.array([frame.size for frame in frames], np.int64))


def pad_stacks(stacks: Sequence[FrameStack], padding: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of any shapes → frames (B, T, 3, H, W) uint8, mask (B, T) bool, True = exists, and sizes (B, T, 2) int64."""
    longest, height, width = (max(stack.shape[axis] for stack in stacks) for axis in range(3))
    frames = np.full((len(stacks), longest, 3, height, width), padding, np.uint8)
    mask = np.zeros((len(stacks), longest), bool)
    sizes = np.zeros((len(stacks), longest, 2), np.int64)
    for row, stack in enumerate(stacks):
        count, high, wide = stack.shape
        frames[row, :count, :, :high, :wide] = stack.pixels
        mask[row, :count] = True
        sizes[row, :count] = stack.sizes
    return frames, mask, sizes


class ImageProcessor(InputSettings):
    """How images become a recognizer's input; saved as JSON in the bundle and loaded from it."""

    def __call__(self, image: np.ndarray) -> Frame:
        """Resize (H', W', 3) uint8 pixels, with antialiasing, as the settings say."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"An image is (H, W, 3) uint8; this one is {image.shape} {image.dtype}.")
        height, width = self._fitted(image.shape[0], image.shape[1])
        method = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        resized = np.asarray(Image.fromarray(image).resize((width, height), method))
        whole = (height, width) if self.varies else (self.height, self.width)
        pixels = np.full((3, *whole), self.padding, np.uint8)
        pixels[:, :height, :width] = resized.transpose(2, 0, 1)
        return Frame(pixels, (height, width))

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "squeeze":
            return self.height, self.width
        if self.resize == "line":
            return self.height, min(self.width, max(1, round(width * self.height / height)))
        if self.resize == "budget":
            return self._within_budget(height, width)
        scale = min(self.height / height, self.width / width)
        return (
            min(self.height, max(1, round(height * scale))),
            min(self.width, max(1, round(width * scale))),
        )

    def _within_budget(self, height: int, width: int) -> tuple[int, int]:
        """Both sides rounded to the multiple, then down or up together if the area is out of bounds (arXiv 2409.12191)."""
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ImageError(f"The image is {width} × {height}, longer than {MAX_ASPECT} times its other side; cut it.")
        step, most = self.multiple, self.height * self.width
        fitted = [round(side / step) * step for side in (height, width)]
        if fitted[0] * fitted[1] > most:
            shrink = sqrt(height * width / most)
            fitted = [floor(side / shrink / step) * step for side in (height, width)]
        elif fitted[0] * fitted[1] < self.min_pixels:
            grow = sqrt(self.min_pixels / (height * width))
            fitted = [ceil(side * grow / step) * step for side in (height, width)]
        return max(step, fitted[0]), max(step, fitted[1])

    def normalise(self, frames: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """(…, 3, H, W) uint8 to floats ((pixel / 255) - mean) / std on the same device, float32 by default."""
        import torch  # here, so that data workers which only decode start without it

        if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-3] != 3:
            raise ImageError(f"Frames are (…, 3, H, W) uint8; these are {tuple(frames.shape)} {frames.dtype}.")
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=frames.device).view(3, 1, 1)
        shift = torch.tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=frames.device)
        # In place: batches of frames are larger than caches, so every pass over them counts.
        return frames.float().mul_(scale).sub_(shift.view(3, 1, 1)).to(dtype or torch.float32)


def prepare_frames(
    frames: Sequence[bytes], processors: Sequence[ImageProcessor], *, name: str
) -> tuple[FrameStack, ...]:
    """The encoded frames of one item, decoded once and made ready by each processor. Raises ImageError, ValueError."""
    if not frames:
        raise ValueError(f"{name} has no frames: give at least one image")
    named = [(f"{name}, frame {number}" if len(frames) > 1 else name, data) for number, data in enumerate(frames)]
    made: list[list[Frame]] = [[] for _ in processors]
    for label, data in named:
        # Decoded pictures are large and what is made of them is small: one of them is held at a time.
        image = decode_image(data, name=label)
        for frames_of_one, processor in zip(made, processors, strict=True):
            frames_of_one.append(processor(image))
    return tuple(stack_frames(one, processor.padding) for one, processor in zip(made, processors, strict=True))


def read_frames(path: Path) -> list[bytes]:
    """The encoded frames of an item on disk: a file is a still image, a folder a tracklet in order of file names.

    Numbers in names count as numbers, so frame 10 follows frame 9. Raises ImageError for a folder without images.
    """
    if not path.is_dir():
        return [path.read_bytes()]
    files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ImageError(f"{path} holds no images: a tracklet's folder has files ending in {', '.join(SUFFIXES)}")
    in_order = sorted(
        files, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
    )
    return [file.read_bytes() for file in in_order]
