"""How an encoded item becomes text: the settings that travel with a bundle and are swept without training again."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DecodeSettings(BaseModel):
    """Search, refinement and the vote of frames that were read alone or of windows.

    refine_iters counts cloze passes after a greedy or non-autoregressive search (PARSeq). A recognizer that reads
    frames together reads a tracklet whole, or as so many ``windows`` of ``window_frames`` frames that vote. vote_floor
    is the probability under which the reading of a frame or window is ignored; abstain_below the confidence under which
    an answer is marked abstained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: Literal["greedy", "beam", "non-autoregressive"] = "greedy"
    width: int = Field(1, ge=1, le=64)
    n_best: int = Field(3, ge=1)
    refine_iters: int = Field(0, ge=0)
    windows: int = Field(1, ge=1)
    window_frames: int | None = Field(None, ge=1)
    vote_floor: float = Field(0.2, ge=0, le=1)
    abstain_below: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> DecodeSettings:
        if self.search != "beam" and self.width != 1:
            raise ValueError(f"width {self.width} needs search: beam; {self.search} keeps one hypothesis")
        if self.search == "beam" and self.refine_iters:
            raise ValueError("refinement replaces the probabilities that a beam ranks by: set refine_iters to 0")
        if self.windows > 1 and self.window_frames is None:
            raise ValueError(
                f"windows {self.windows} need window_frames: without it each window would be the whole tracklet"
            )
        return self
