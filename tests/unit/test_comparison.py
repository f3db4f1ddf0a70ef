"""A candidate takes a champion's place if it is shown to read no worse, and is told by how much it fails if it is not."""

from __future__ import annotations

import pytest

from glyphrun.evaluation.comparison import compare


def readers(n: int, *, candidate: int, champion: int, both: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Truths and readings of n items: some that only the candidate reads wrong, some only the champion, some both."""
    truths = ["12"] * n
    wrong = [["17"] * (candidate + both) + ["12"] * (n - candidate - both)]
    wrong.append(["12"] * candidate + ["17"] * (both + champion) + ["12"] * (n - candidate - both - champion))
    return truths, *wrong


def test_readers_that_say_the_same_may_take_each_others_place_on_any_number_of_items():
    truths, candidate, _ = readers(3, candidate=1, champion=0)
    found = compare(truths, candidate, candidate)
    assert found.failures(0.0) == []
    assert (found.errors.difference, found.mcnemar_p) == (0, 1)


def test_figures_are_the_candidates_less_the_champions():
    found = compare(*readers(100, candidate=2, champion=6, both=10))
    assert (found.errors.candidate, found.errors.champion) == (0.12, 0.16)
    assert found.errors.difference == pytest.approx(-0.04)
    assert found.cer is not None
    assert (found.cer.candidate, found.cer.champion) == (0.06, 0.08)
    assert (found.only_candidate, found.only_champion) == (6, 2)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 8 + 28) / 2**8)


def test_a_worse_one_is_refused_by_how_much_it_fails():
    found = compare(*readers(400, candidate=40, champion=4))
    wrong, cer, mcnemar = found.failures(0.02)
    assert wrong.startswith("items read wrong: 0.1000 against 0.0100, a difference of +0.0900")
    assert f"at most +0.0200 may be possible, and {found.errors.high - 0.02:.4f} more is" in wrong
    assert "too few" not in wrong
    assert cer.startswith("CER: 0.0500 against 0.0050")
    assert "the champion alone reads 40 items right and the candidate alone 4, p = " in mcnemar


def test_a_small_certain_loss_within_the_margin_is_refused_by_mcnemar():
    found = compare(*readers(4000, candidate=12, champion=0))
    assert found.errors.high < 0.02
    (only,) = found.failures(0.02)
    assert only.startswith("McNemar")
    assert found.mcnemar_p == pytest.approx(2 / 2**12)


def test_few_items_do_not_show_that_a_reader_is_no_worse_and_more_of_the_same_do():
    few, many = compare(*readers(40, candidate=2, champion=2)), compare(*readers(4000, candidate=20, champion=20))
    refusal, *_ = few.failures(0.02)
    assert "40 items are too few to rule it out" in refusal
    assert many.failures(0.02) == []
    assert few.failures(0.2) == []


def test_a_better_one_passes():
    assert compare(*readers(40, candidate=0, champion=10)).failures(0.0) == []


def test_items_in_which_nothing_can_be_read_have_no_cer():
    found = compare(["", ""], ["", "1"], ["", ""])
    assert found.cer is None
    assert found.errors.difference == 0.5
