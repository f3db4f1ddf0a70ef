"""Rows of a decode sweep as they are reported, with nothing read for them."""

from __future__ import annotations

from typing import Any

from glyphrun.decoding.settings import DecodeSettings


def row(name: str, cer: float | None, ms: float, *, exact: float = 0.5, vote: str | None = None, **decode: Any) -> dict:
    against = None if cer is None else {"difference": cer - 0.2, "ci": [cer - 0.22, cer - 0.18], "p": 0.01}
    return {
        "name": name,
        "point": {
            "members": ["one", "two"] if vote else ["one"],
            "decode": DecodeSettings.model_validate(decode).model_dump(mode="json"),
            "ensemble_vote": vote,
        },
        "n": 200,
        "exact": exact,
        "exact_ci": [exact - 0.05, exact + 0.05],
        "cer": cer,
        "cer_ci": [None, None] if cer is None else [cer - 0.02, cer + 0.02],
        "wer": cer,
        "wer_ci": [None, None],
        "ms": ms,
        "images_per_s": 1000 / ms,
        "frames_read": 1.0,
        "against_greedy": {"exact": {"difference": 0.0, "ci": [0.0, 0.0], "p": 1.0}, "cer": against},
    }


def sample_rows() -> list[dict]:
    return [
        row("2 members, mbr, beam, width 5", 0.11, 30.0, exact=0.71, vote="mbr", search="beam", width=5),
        row("one, beam, width 5", 0.15, 12.0, exact=0.63, search="beam", width=5),
        row("one, beam, width 3", 0.16, 14.0, exact=0.62, search="beam", width=3),
        row("one, greedy", 0.2, 4.0, exact=0.6),
        row("one, <sample>", 0.27, 20.0, exact=0.4, search="sample", temperature=0.7, samples=5),
    ]
