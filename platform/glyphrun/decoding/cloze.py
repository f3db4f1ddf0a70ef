"""Cloze rescoring: every token of a hypothesis is judged from all the others, to its left and to its right (PARSeq)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from glyphrun.decoding.scorer import ranked
from glyphrun.models.recognizer import Memory, Refinable, TokenHypothesis


def cloze_rescore(
    recognizer: Refinable,
    memory: Memory,
    found: Sequence[Sequence[TokenHypothesis]],
    end: int,
    max_length: int,
    length_penalty: float = 0.0,
) -> list[list[TokenHypothesis]]:
    """The hypotheses of each item, ranked anew by one cloze pass over all of them.

    The sum of the cloze log-probabilities of tokens and end takes the place of log_prob in the score; log_prob itself
    stays what it was, since only left to right do such probabilities multiply to that of the whole text.
    """
    device, most = memory.tokens.device, max(map(len, found))
    tokens = torch.full((len(found), most, max_length + 1), end)
    for rows, hypotheses in zip(tokens, found, strict=True):
        for row, hypothesis in zip(rows, hypotheses, strict=False):
            row[: len(hypothesis.tokens)] = torch.tensor(hypothesis.tokens, dtype=torch.long)
    readings = tokens.flatten(0, 1).to(device)  # as many of each item, so that they share its keys and values
    judged = recognizer.refine(memory, readings).gather(2, readings.unsqueeze(2)).view(tokens.shape)
    sums = judged.double().cumsum(2).tolist()  # up to each place
    return [
        ranked(
            _rescored(hypothesis, totals[len(hypothesis.tokens)], length_penalty)
            for hypothesis, totals in zip(hypotheses, item, strict=False)
        )
        for hypotheses, item in zip(found, sums, strict=True)
    ]


def _rescored(hypothesis: TokenHypothesis, cloze: float, length_penalty: float) -> TokenHypothesis:
    gained = (cloze - hypothesis.log_prob) / (len(hypothesis.tokens) + 1) ** length_penalty
    return replace(hypothesis, score=hypothesis.score + gained)
