"""What fixes a TrOCR: where it comes from or its sizes, what its frames look like and which tokens it writes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glyphrun.inputs import InputSettings
from glyphrun.models.multiscale import depths
from glyphrun.models.recognizer import ModelSettings, SubwordSettings


class VisionSizes(BaseModel):
    """Sizes of a Vision Transformer; patch: height and width in pixels. A convolutional stem learns faster from nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch: tuple[int, int] = (16, 16)
    stem: Literal["patch", "convolution"] = "patch"
    width: int = Field(256, ge=8)
    depth: int = Field(6, ge=1)
    heads: int = Field(8, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> VisionSizes:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.stem == "convolution" and (self.patch[0] % 4 or self.patch[1] % 4):
            raise ValueError(
                f"a convolutional stem shrinks by 4, and the patch {self.patch[0]} × {self.patch[1]} is no multiple"
            )
        return self


class TextSizes(BaseModel):
    """Sizes of a text decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(256, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(8, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> TextSizes:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TrOCRSettings(ModelSettings):
    """A TrOCR from a hub name or a folder (source), or one of the given sizes with fresh weights.

    config: the configuration in transformers' form; with it no weights are fetched. image: height and width in pixels;
    other than the published 384 × 384 they interpolate its position embeddings. resize: squeeze fills them whatever the
    aspect, as published; keep-aspect fits the picture in and masks the rest. vocabulary: the source's own subwords, or a
    new one for a charset or other tokens, with the encoder kept. train: decoder freezes the encoder. begin, end and pad:
    the source's token ids, for its own subwords. scales: depths of the encoder that are fused.
    """

    kind: Literal["trocr"] = "trocr"
    source: str | None = None
    config: dict[str, Any] | None = None
    encoder: VisionSizes | None = None
    decoder: TextSizes | None = None
    image: tuple[int, int] = (384, 384)
    resize: Literal["squeeze", "keep-aspect"] = "squeeze"
    vocabulary: Literal["published", "charset"] = "published"
    train: Literal["all", "decoder"] = "all"
    begin: int = Field(2, ge=0)
    end: int = Field(2, ge=0)
    pad: int = Field(1, ge=0)
    scales: int = Field(1, ge=1, le=3)

    @model_validator(mode="after")
    def _one_origin(self) -> TrOCRSettings:
        if self.source is None and self.vocabulary == "published":
            raise ValueError("vocabulary published needs a source, whose subwords it is: give one, or choose charset")
        if (self.source or self.config) and (self.encoder or self.decoder):
            raise ValueError("the sizes of encoder and decoder are those of the source: leave them out, or the source")
        if not (self.source or self.config):
            depths((self.encoder or VisionSizes()).depth, self.scales)
        if self.end == self.pad:
            raise ValueError(f"end and pad are both token {self.end}: a label could not end")
        return self

    @property
    def input(self) -> InputSettings:
        """Pixels from -1 to 1, resized with bilinear interpolation as published."""
        return InputSettings(
            height=self.image[0], width=self.image[1], resize=self.resize, interpolation="bilinear", padding=127
        )

    @property
    def subwords(self) -> SubwordSettings | None:
        """The source's own, unless they are replaced."""
        if self.vocabulary == "charset" or self.source is None:
            return None
        return SubwordSettings(source=self.source, begin=self.begin, end=self.end, pad=self.pad)
