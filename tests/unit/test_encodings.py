"""Encodings that were stored are the encodings that were made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glyphrun.encoded import Encoded
from glyphrun.models.recognizer import Memory
from glyphrun.sweeps.encode import Split
from glyphrun.sweeps.encodings import size_in_bytes, store


def encoded(dtype: torch.dtype = torch.float32) -> Encoded:
    tokens = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Encoded(Memory(tokens, None, tokens, torch.ones(4, 1, dtype=torch.bool)), [1] * 4, [0.5] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filed", [False, True])
def test_a_stored_batch_is_the_batch(dtype: torch.dtype, filed: bool, tmp_path: Path):
    one = encoded(dtype)
    (stored,) = store([([2, 0, 1, 3], one)], tmp_path / "here" if filed else None)
    numbers, found = stored.load(torch.device("cpu"))
    assert numbers == [2, 0, 1, 3] and found.counts == one.counts and found.looks == one.looks
    assert found.memory.mask is None and found.memory.frame_mask.dtype == torch.bool
    assert torch.equal(found.memory.tokens, one.memory.tokens) and found.memory.tokens.dtype == dtype
    assert stored.encoded.memory.tokens.numel() == 0, "what travels with it holds no tensor of its own"


def test_one_tensor_under_two_names_is_kept_once(tmp_path: Path):
    one = encoded()
    apart = replace(one, memory=replace(one.memory, frame_tokens=one.memory.tokens.clone()))
    assert size_in_bytes([([0], one)]) == 4 * 3 * 8 * 4 + 4
    assert size_in_bytes([([0], apart)]) == 2 * 4 * 3 * 8 * 4 + 4
    store([([0], one)], tmp_path / "one")
    store([([0], apart)], tmp_path / "apart")
    assert len(list((tmp_path / "one").iterdir())) == 2 and len(list((tmp_path / "apart").iterdir())) == 3


def test_a_limit_draws_items_by_the_seed():
    split = Split(Path("data"), "val", limit=8)
    drawn = {seed: replace(split, seed=seed).chosen(100).tolist() for seed in (0, 1)}
    assert drawn[0] == split.chosen(100).tolist() != drawn[1]
    assert all(len(set(items)) == 8 and items == sorted(items) for items in drawn.values())
    assert split.chosen(5).tolist() == replace(split, limit=None).chosen(5).tolist() == [0, 1, 2, 3, 4]
