"""What others have published, or estimated, of recognizers that have a name here; never measured by this program."""

from __future__ import annotations

from dataclasses import dataclass

from glyphrun.models.weights import PUBLISHED_CHARSET
from glyphrun.text import DIGITS

Range = tuple[float, float]


@dataclass(frozen=True)
class Published:
    """Ranges from low to high, for sequences of ``frames`` frames with texts of max_length characters of the charset.

    parameters in 10⁶; multiply_adds in 10⁹ a sequence, often called GFLOPs; encoder: those of the encoder alone; t4_ms:
    milliseconds a sequence on a T4, a rough estimate; speedup: times as fast as the baseline, the same.
    """

    parameters: Range
    multiply_adds: Range
    encoder: float | None
    t4_ms: Range
    speedup: Range | None
    frames: int
    charset: str
    max_length: int


# PARSeq: arXiv 2207.06966, table of model variants. T4 times and query digits: the study's own estimates.
PUBLISHED: dict[str, Published] = {
    "parseq-small": Published((23.8, 23.8), (3.26, 3.26), 2.87, (12, 25), None, 1, PUBLISHED_CHARSET, 25),
    "parseq-tiny": Published((6.0, 6.0), (0.9, 1.3), 0.757, (7, 14), (1.7, 2.5), 1, PUBLISHED_CHARSET, 25),
    "query-digits": Published((5.5, 7.0), (0.8, 1.4), None, (5, 11), (2.3, 3.8), 8, DIGITS, 2),
}
