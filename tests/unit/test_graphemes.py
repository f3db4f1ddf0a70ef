"""Grapheme clusters: an Odia conjunct is one, whatever its vowel sign, and nothing is ever lost."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from glyphrun.evaluation.metrics import character_error_rate, count_errors
from glyphrun.graphemes import graphemes
from glyphrun.text import normalise
from real_texts import odia

VIRAMA = "\u0b4d"


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("କ୍ଷ", ["କ୍ଷ"]),
        ("ସ୍ତ୍ରୀ", ["ସ୍ତ୍ରୀ"]),
        ("ଶ୍ରେଣୀ", ["ଶ୍ରେ", "ଣୀ"]),
        ("ଚୌଦ୍ଵାର", ["ଚୌ", "ଦ୍ଵା", "ର"]),
        ("ରାଷ୍ଟ୍ରପତି", ["ରା", "ଷ୍ଟ୍ର", "ପ", "ତି"]),
        ("କମ୍\u200c", ["କ", "ମ୍\u200c"]),  # a virama that joins nothing stays with its consonant
        ("ଓଡ଼ିଶା", ["ଓ", "ଡ଼ି", "ଶା"]),
        ("été", ["é", "t", "é"]),
        ("a\r\nb", ["a", "\r\n", "b"]),
        ("", []),
    ],
)
def test_a_cluster_is_what_a_reader_calls_one_character(text: str, clusters: list[str]) -> None:
    assert graphemes(text) == clusters


@pytest.mark.parametrize("text", ["ଡ଼", "\u0b5c", "କୋ", "କ\u0b47\u0b3e", "e\u0301", "é"])
def test_both_ways_to_write_a_letter_are_one_cluster_and_equal_once_normalised(text: str) -> None:
    assert len(graphemes(text)) == 1
    assert graphemes(normalise(text)) == [normalise(text)]


def test_equal_looking_texts_have_equal_clusters_in_the_one_normal_form() -> None:
    composed, split = "ଓ\u0b5cିଶା", "ଓଡ\u0b3cିଶା"
    assert graphemes(composed) != graphemes(split)
    assert graphemes(normalise(composed)) == graphemes(normalise(split)) == graphemes(split)


def test_nothing_is_lost_or_added_in_any_text() -> None:
    rng = random.Random(0)
    for _ in range(200):
        blocks = [range(0x80), range(0xB00, 0xB80), (0x200C, 0x200D, 0xD800)]
        text = "".join(chr(rng.choice(rng.choice(blocks))) for _ in range(12))
        assert "".join(graphemes(text)) == text


def test_no_word_of_the_odia_list_is_split_after_a_virama(shared: Path) -> None:
    words = odia(shared)
    joined = 0
    for word in map(normalise, words):
        clusters = graphemes(word)
        assert "".join(clusters) == word
        for before, after in pairwise(clusters):
            # A virama may only end a cluster where no consonant follows it at once.
            assert not (before.endswith(VIRAMA) and "\u0b15" <= after[0] <= "\u0b39"), word
        joined += sum(VIRAMA in cluster[:-1] for cluster in clusters)
    assert joined > 20_000


def test_an_error_rate_over_graphemes_counts_a_wrong_conjunct_once() -> None:
    truth, reading = "ରାଷ୍ଟ୍ରପତି", "ରାକପତି"  # ଷ୍ଟ୍ର was read as କ
    points = count_errors([truth], [reading])
    clusters = count_errors([truth], [reading], unit="graphemes")
    assert (int(points.character_edits[0]), int(points.characters[0])) == (5, 10)
    assert (int(clusters.character_edits[0]), int(clusters.characters[0])) == (1, 4)
    assert character_error_rate(clusters).value == pytest.approx(1 / 4)
    assert clusters.word_edits.tolist() == points.word_edits.tolist() == [1]


def test_the_unit_changes_nothing_where_every_character_is_one_code_point() -> None:
    truths, readings = ["été à Paris", "42"], ["ete a Pari", "24"]
    both = [count_errors(truths, readings, unit=unit) for unit in ("characters", "graphemes")]
    assert both[0].character_edits.tolist() == both[1].character_edits.tolist() == [4, 2]
