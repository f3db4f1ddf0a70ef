"""Shares of a batch, weighed by the terms of their losses, have the loss of the whole batch, for every kind of recognizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec
from glyphrun.training.gradient import loss_terms

TEXTS = ["", "7", "12", "365", "4", "90", "", "128"]
SMALL = {"encoder": {"image": (16, 24), "patch": (8, 8), "width": 16, "depth": 1, "heads": 2}, "decoder_heads": 2}


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("parseq-nano", {**SMALL, "permutations": 6}, (16, 24)),
        ("parseq-nano", {**SMALL, "permutations": 1}, (16, 24)),
        ("query-digits-nano", SMALL, (16, 24)),
        ("line-ctc-nano", {}, (48, 200)),
        ("trocr-nano", {}, (48, 192)),
    ],
)
def test_the_losses_of_shares_weighed_by_their_terms_add_up_to_the_loss_of_the_batch(
    name: str, changes: dict[str, Any], size: tuple[int, int]
) -> None:
    texts = [text[:2] for text in TEXTS] if name.startswith("query") else TEXTS
    codec = Codec(DIGITS, max(map(len, texts)))
    torch.manual_seed(0)
    recognizer = build(recognizer_settings(name, changes), codec).eval()
    frames, mask = torch.randn(8, 1, 3, *size), torch.ones(8, 1, dtype=torch.bool)
    sizes = torch.tensor(size).expand(8, 1, 2)
    targets = codec.encode_batch(texts)

    def loss(rows: slice) -> torch.Tensor:
        return recognizer.loss(recognizer.encode(frames[rows], mask[rows], sizes[rows]), targets[rows])

    shares = [slice(rank, 8, 3) for rank in range(3)]
    weighed = sum(loss(rows) * loss_terms(recognizer, targets[rows], codec.pad) for rows in shares)
    whole = slice(None)
    assert len({loss_terms(recognizer, targets[rows], codec.pad) for rows in shares}) > 1
    torch.testing.assert_close(weighed / loss_terms(recognizer, targets, codec.pad), loss(whole), atol=1e-5, rtol=1e-5)
