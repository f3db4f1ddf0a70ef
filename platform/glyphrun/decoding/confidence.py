"""Confidence: the probability that a reading is right, and the temperature that brings it into line with what is right.

The confidence of a string is exp(Hypothesis.log_prob): the product of its tokens' probabilities and that of its end or,
where frames, windows or members vote, its share of the votes. The confidence of a character is the probability of its
token given those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from glyphrun.decoding.settings import Calibration
from glyphrun.decoding.vote import Hypothesis

CERTAIN = 1 - 1e-6  # sums of float32 log-probabilities cannot tell what lies above from 1, which has no log-odds


def log_odds(log_probs: ArrayLike) -> np.ndarray:
    """ln(p / (1 - p)) of natural log-probabilities, at most that of CERTAIN."""
    bounded = np.minimum(np.asarray(log_probs, np.float64), np.log(CERTAIN))
    return bounded - np.log(-np.expm1(bounded))


def tempered(log_probs: ArrayLike, temperature: float) -> np.ndarray:
    """The natural log-probabilities whose log-odds are those of ``log_probs`` divided by the temperature.

    Temperature scaling (arXiv 1706.04599) of two outcomes, this reading and all others together: what search, votes and
    correction leave has no logits of the others to scale. It is fitted on whole strings, for what calibrates characters
    need not calibrate the strings that they make up (arXiv 2012.12643). A temperature above 1 draws confidences towards
    one half, one below 1 away from it; none changes which of two is greater, and 1 changes nothing.
    """
    if temperature == 1:
        return np.asarray(log_probs, np.float64)
    return -np.logaddexp(0.0, -log_odds(log_probs) / temperature)


def calibrate(n_best: Sequence[Hypothesis], calibration: Calibration) -> list[Hypothesis]:
    """The hypotheses in their order with tempered log-probabilities of strings and of tokens.

    Each reading is weighed against all others on its own, so that the probabilities of a list need not sum to 1.
    """
    return [
        replace(
            found,
            log_prob=float(tempered(found.log_prob, calibration.temperature)),
            token_log_probs=tuple(tempered(found.token_log_probs, calibration.character_temperature).tolist()),
        )
        for found in n_best
    ]
