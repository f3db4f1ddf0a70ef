"""From encoded bytes to the pixels that a recognizer reads."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 40_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


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
        return np.array(_rgb(_upright(image), name))


def encode_image(array: np.ndarray, format: Literal["PNG", "JPEG", "WEBP", "BMP"] = "PNG") -> bytes:
    """Encode (H, W, 3) or (H, W) uint8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format)
    return buffer.getvalue()


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
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
    mask: np.ndarray  # (H, W) bool, True on the image and False on padding


class ImageProcessor(BaseModel):
    """How images become a recognizer's input; saved as JSON in the bundle and loaded from it.

    `squeeze` fills height × width and ignores the aspect; `keep-aspect` fits the image in, at the left and the
    top, and pads the rest. Mean and standard deviation are per channel on pixels of 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize: Literal["squeeze", "keep-aspect"] = "squeeze"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    padding: int = Field(default=0, ge=0, le=255)
    mean: tuple[Fraction, Fraction, Fraction] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)

    def __call__(self, image: np.ndarray) -> Frame:
        """Resize (H', W', 3) uint8 pixels, with antialiasing, to this processor's size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"An image is (H, W, 3) uint8; this one is {image.shape} {image.dtype}.")
        height, width = self._fitted(image.shape[0], image.shape[1])
        method = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        resized = np.asarray(Image.fromarray(image).resize((width, height), method))
        pixels = np.full((3, self.height, self.width), self.padding, np.uint8)
        pixels[:, :height, :width] = resized.transpose(2, 0, 1)
        mask = np.zeros((self.height, self.width), bool)
        mask[:height, :width] = True
        return Frame(pixels, mask)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "squeeze":
            return self.height, self.width
        scale = min(self.height / height, self.width / width)
        return (
            min(self.height, max(1, round(height * scale))),
            min(self.width, max(1, round(width * scale))),
        )

    def normalise(self, frames: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """(…, 3, H, W) uint8 to floats ((pixel / 255) - mean) / std on the same device, float32 by default."""
        import torch  # here, so that data workers which only decode start without it

        if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-3] != 3:
            raise ImageError(f"Frames are (…, 3, H, W) uint8; these are {tuple(frames.shape)} {frames.dtype}.")
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=frames.device).view(3, 1, 1)
        shift = torch.tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=frames.device)
        # In place: batches of frames are larger than caches, so every pass over them counts.
        return frames.float().mul_(scale).sub_(shift.view(3, 1, 1)).to(dtype or torch.float32)


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
