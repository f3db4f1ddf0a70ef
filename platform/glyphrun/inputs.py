"""What a recognizer wants its frames to look like; the image processor takes exactly these settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Resize = Literal["squeeze", "keep-aspect", "line", "budget"]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class InputSettings(BaseModel):
    """Size and scale of a recognizer's frames, in pixels.

    squeeze: height × width whatever the aspect. keep-aspect: fitted in at the left and the top, padded to height × width.
    line: always ``height`` high and as wide as the aspect asks, at most ``width`` (a longer line is squeezed). budget:
    both sides multiples of ``multiple`` near the picture's own size, of min_pixels to height · width pixels together.
    The last two leave frames of different sizes, which a batch pads. Mean and standard deviation are per channel on
    pixels of 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize: Resize = "squeeze"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    multiple: int = Field(default=1, ge=1)
    min_pixels: int = Field(default=0, ge=0)
    padding: int = Field(default=0, ge=0, le=255)
    mean: tuple[Fraction, Fraction, Fraction] = (0.5, 0.5, 0.5)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)

    @property
    def varies(self) -> bool:
        """True if frames come in different sizes."""
        return self.resize in ("line", "budget")
