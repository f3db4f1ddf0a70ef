"""Which requests are worth a label: those that the model was unsure of, gave no answer to, or its members disagree on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from glyphrun.prediction import Prediction
from glyphrun_serve.schemas import HEARD


class SampleLog(BaseModel):
    """Where such requests are kept, and how many: nothing is kept unless a folder is named.

    below: a reading of less confidence is kept. items, total_bytes: the most that the data set holds; the oldest go first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    below: float = Field(default=0.6, ge=0, le=1)
    items: int = Field(default=1000, gt=0)
    total_bytes: int = Field(default=256 * 1024**2, ge=1024**2)


def reasons_to_keep(found: Prediction, below: float) -> tuple[str, ...]:
    """Why a reading is worth a label; empty if it is not."""
    heard = {member.text for member in found.members if member.status in HEARD}
    reasons = {
        "low confidence": found.confidence < below,
        "abstained": found.abstained,
        "members disagree": len(heard) > 1,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)
