"""The winner's confidence: temperatures and threshold from val, and what they give on every split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from glyphrun.decoding.confidence import tempered
from glyphrun.decoding.settings import Calibration, DecodeSettings
from glyphrun.evaluation.abstention import Answered, answered_at, risk_coverage, threshold_for_precision
from glyphrun.evaluation.calibration import (
    Answers,
    CalibrationError,
    expected_calibration_error,
    fit_temperature,
    reliability,
)

CURVE_POINTS = 100


def settle_confidence(
    decode: DecodeSettings, read: Mapping[str, Answers], precision: float | None
) -> tuple[DecodeSettings, dict[str, Any]]:
    """Decode settings with temperatures fitted on val, and with the threshold that attains a precision there.

    read: the answers of val and of other splits, from an engine that does not calibrate. Returns also what results.json
    says of confidence; splits but val have no part in the settings.
    """
    strings = fit_temperature(read["val"].log_probs, read["val"].correct)
    characters = fit_temperature(read["val"].character_log_probs, read["val"].character_correct)
    decode = decode.model_copy(
        update={"calibration": Calibration(temperature=strings.value, character_temperature=characters.value)}
    )
    abstention = None
    if precision is not None:
        found = threshold_for_precision(
            _confidences(read["val"].log_probs, strings.value), read["val"].correct, precision
        )
        abstention = {"precision": precision, "reason": found.reason}
        if found.threshold is not None:
            decode = decode.model_copy(update={"abstain_below": found.threshold})
    return decode, {
        "temperature": asdict(strings),
        "character_temperature": asdict(characters),
        "abstention": abstention,
        "abstain_below": decode.abstain_below,
        "splits": {split: _of_split(answers, decode) for split, answers in read.items()},
    }


def _of_split(answers: Answers, decode: DecodeSettings) -> dict[str, Any]:
    calibration, right = decode.calibration, answers.correct
    before, after = np.exp(answers.log_probs), _confidences(answers.log_probs, calibration.temperature)
    curve = risk_coverage(after, right)
    shown = np.unique(np.linspace(0, len(curve.coverage) - 1, CURVE_POINTS).round().astype(int))
    return {
        "n": len(right),
        "right": float(right.mean()),
        "mean_confidence": {"before": float(before.mean()), "after": float(after.mean())},
        "ece": {"before": _errors(before, right), "after": _errors(after, right)},
        "characters": _of_characters(answers, calibration.character_temperature),
        "reliability": {
            stage: [
                {"n": bin.n, "confidence": bin.confidence, "right": bin.right.value, "right_ci": [bin.right.low, bin.right.high]}
                for bin in reliability(stated, right)
            ]
            for stage, stated in (("before", before), ("after", after))
        },
        "risk_coverage": {
            "coverage": curve.coverage[shown].tolist(),
            "risk": curve.risk[shown].tolist(),
            "area": curve.area,
            "best_area": curve.best_area,
        },
        "answered": _answered(answered_at(after, right, decode.abstain_below)),
    }  # fmt: skip


def _of_characters(answers: Answers, temperature: float) -> dict[str, Any] | None:
    """None where nothing was read."""
    right = answers.character_correct
    if not len(right):
        return None
    before = _errors(np.exp(answers.character_log_probs), right)
    after = _errors(_confidences(answers.character_log_probs, temperature), right)
    return {"n": len(right), "right": float(right.mean()), "ece": {"before": before, "after": after}}


def _errors(confidences: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Expected calibration error over bins of equal mass with its interval, and the value over bins of equal width."""
    found: CalibrationError = expected_calibration_error(confidences, right)
    return {
        "value": found.value,
        "ci": [found.low, found.high],
        "chance": found.chance,
        "equal_width": expected_calibration_error(confidences, right, by="width", resamples=1).value,
    }


def _answered(found: Answered) -> dict[str, Any]:
    precision = found.precision
    return {
        "n": found.n,
        "coverage": found.coverage,
        "precision": precision and precision.value,
        "precision_ci": precision and [precision.low, precision.high],
    }


def _confidences(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(tempered(log_probs, temperature))
