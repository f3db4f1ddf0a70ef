"""Character n-gram models: probabilities that sum to 1, as Kneser and Ney define them, and the files that hold them."""

from __future__ import annotations

from collections import Counter
from math import log
from pathlib import Path

import kenlm
import numpy as np
import pytest
from typer.testing import CliRunner

from glyphrun.cli.language import lm
from glyphrun.data.sample import iterate_samples
from glyphrun.language.corpus import CorpusError, read_weighted
from glyphrun.language.lm import CharacterLM, perplexity
from glyphrun.language.ngram import (
    BEGIN,
    END,
    FALLBACK_DISCOUNTS,
    UNKNOWN,
    adjusted_counts,
    discounts,
    train,
    write_arpa,
)
from real_texts import french


def some_texts(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts over six characters whose next one depends on the last, so that all counts up to four and more occur."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(6, 0.4), size=6)
    texts = []
    for _ in range(count):
        place, text = int(rng.integers(6)), ""
        for _ in range(rng.integers(1, 9)):
            place = int(rng.choice(6, p=rows[place]))
            text += "abc é\u0b15"[place]
        texts.append((text, 1))
    return texts


def contexts_of(texts: list[tuple[str, int]], order: int) -> list[str]:
    seen = {(BEGIN + text)[start : start + order] for text, _ in texts for start in range(len(text))}
    return ["", "z", "az", "zzzzz", *sorted(seen)]


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_the_probabilities_after_any_context_sum_to_one(order: int) -> None:
    texts = some_texts(80)
    model = train(texts, order)
    contexts = contexts_of(texts, order)
    assert len(contexts) > 30
    for context in contexts:
        total = sum(10 ** model.log10(context, character) for character in model.vocabulary)
        assert total == pytest.approx(1, abs=1e-9), context
    assert model.log10("", "z") == model.log10("", UNKNOWN)


def test_a_tiny_corpus_has_the_probabilities_counted_by_hand() -> None:
    model = train([("ab", 1), ("a", 1)], 2)
    # After different characters: a after 1, b after 1, the end after 2. All discounts are the fallback .5, 1, 1.5.
    # Discounted off the four: .5 + .5 + 1 = 2, half of the whole, for a, b, the end and the unknown: .125 each.
    unigrams = {"a": 0.5 / 4 + 0.125, "b": 0.5 / 4 + 0.125, END: 1 / 4 + 0.125, UNKNOWN: 0.125}
    assert {word: 10 ** model.log_probs[0][word] for word in unigrams} == pytest.approx(unigrams)
    bigrams = {
        BEGIN + "a": 1 / 2 + 1 / 2 * 0.25,
        "ab": 0.5 / 2 + 1 / 2 * 0.25,
        "a" + END: 0.5 / 2 + 1 / 2 * 0.375,
        "b" + END: 0.5 / 1 + 0.5 * 0.375,
    }
    assert {word: 10**value for word, value in model.log_probs[1].items()} == pytest.approx(bigrams)
    assert model.log_prob("ab") == pytest.approx(log(0.625 * 0.375 * 0.6875))
    # Never seen: b after the begin, by half of the unigram, then the rest.
    assert model.log_prob("b") == pytest.approx(log(0.5 * 0.25 * 0.6875))


def test_discounts_are_those_of_the_counts_of_counts() -> None:
    counts = [1] * 10 + [2] * 4 + [3] * 2 + [4] + [9] * 7
    share = 10 / (10 + 2 * 4)
    assert discounts(counts) == pytest.approx((1 - 2 * share * 4 / 10, 2 - 3 * share * 2 / 4, 3 - 4 * share * 1 / 2))
    assert discounts([1, 1, 2, 3]) == FALLBACK_DISCOUNTS  # no count of 4 to estimate the third from
    assert discounts([1] * 10 + [2] + [3] * 90 + [4]) == FALLBACK_DISCOUNTS  # it would be negative


def kneser_ney(texts: list[tuple[str, int]], order: int, context: str, character: str) -> float:
    """The textbook's recursion from the texts themselves, without a table."""
    sequences = [BEGIN + text + END for text, _ in texts]
    vocabulary = {character for sequence in sequences for character in sequence[1:]} | {UNKNOWN}

    def counts(length: int) -> Counter[str]:
        found: Counter[str] = Counter()
        extended = set()
        for sequence in sequences:
            for start in range(len(sequence) - length + 1):
                ngram = sequence[start : start + length]
                if length == order or ngram[0] == BEGIN:
                    found[ngram] += 1
                else:
                    extended.add(sequence[start - 1 : start + length])
        found.update(ngram[1:] for ngram in extended)
        return Counter({ngram: count for ngram, count in found.items() if ngram != BEGIN})

    def probability(context: str) -> float:
        level = counts(len(context) + 1)
        taken = discounts(level.values())
        lower = probability(context[1:]) if context else 1 / len(vocabulary)
        after = {ngram: count for ngram, count in level.items() if ngram[:-1] == context}
        if not after:
            return lower
        freed = sum(taken[min(count, 3) - 1] for count in after.values())
        count = after.get(context + character, 0)
        kept = count - taken[min(count, 3) - 1] if count else 0.0
        return (kept + freed * lower) / sum(after.values())

    return probability(context[-order + 1 :])


def test_a_model_is_what_the_formula_says_counted_another_way() -> None:
    texts = some_texts(40, seed=3)
    model = train(texts, 4)
    fallen_back = [discounts(level.values()) == FALLBACK_DISCOUNTS for level in adjusted_counts(texts, 4)]
    assert fallen_back == [True, False, True, False]  # both ways are taken
    for context in contexts_of(texts, 4)[::4]:
        for character in model.vocabulary:
            expected = kneser_ney(texts, 4, context, character)
            assert 10 ** model.log10(context, character) == pytest.approx(expected, rel=1e-9), (context, character)


def test_kenlm_reads_the_file_and_gives_the_same_scores(tmp_path: Path) -> None:
    model = train(some_texts(60), 5)
    write_arpa(model, tmp_path / "model.arpa")
    found = CharacterLM(tmp_path / "model.arpa")
    texts = ["", "a", "é a", "\u0b15b c", "zebra", *(text for text, _ in some_texts(60, seed=1))]
    assert found.order == 5
    assert found.log_probs(texts) == pytest.approx([model.log_prob(text) for text in texts], abs=1e-4)
    raw = kenlm.Model(str(tmp_path / "model.arpa"))
    assert raw.score("\u2581 a", bos=True, eos=True) * log(10) == pytest.approx(model.log_prob(" a"), abs=1e-4)


def test_words_count_as_often_as_their_list_says(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("ab\t3\nba\t1\n", encoding="utf-8")
    (tmp_path / "words.txt").write_text("ab\nab\nab\nba\n", encoding="utf-8")
    weighted, repeated = (train(read_weighted(tmp_path / name), 3) for name in ("words.tsv", "words.txt"))
    assert weighted == repeated
    assert weighted.log_prob("ab") > weighted.log_prob("ba")


def test_texts_learn_the_same_whatever_their_file_begins_and_its_lines_end_with(tmp_path: Path) -> None:
    plain = "été\nà Paris\n\nNoël"
    forms = {
        "plain.txt": plain.encode(),
        "windows.txt": plain.replace("\n", "\r\n").encode(),
        "mark.txt": b"\xef\xbb\xbf" + plain.encode(),
        "split.txt": "e\u0301te\u0301\na\u0300 Paris \n\n  Noe\u0308l\n\n".encode(),
    }
    models = []
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        models.append(train(read_weighted(tmp_path / name), 4))
    assert models[0].order == 4
    assert all(model == models[0] for model in models[1:])
    assert "\ufeff" not in models[0].vocabulary


def test_one_word_alone_makes_a_model_of_its_own_order(tmp_path: Path) -> None:
    model = train([("a", 1)], 6)
    assert model.order == 3  # begin, a, end
    write_arpa(model, tmp_path / "one.arpa")
    assert CharacterLM(tmp_path / "one.arpa").log_probs(["a", "b"]) == pytest.approx(
        [model.log_prob("a"), model.log_prob("b")], abs=1e-5
    )
    assert model.log_prob("a") > model.log_prob("aa") > model.log_prob("bb")


def test_white_space_of_any_kind_is_one_space_and_controls_are_no_characters() -> None:
    model = train([("a\u00a0b\tc", 1), ("a\x07b", 1)], 3)
    assert set(model.vocabulary) == {"a", "b", "c", " ", END, UNKNOWN}
    assert model.log_prob("a b\u2003c") == model.log_prob("a b c")
    assert model.log_prob("a\u2581b") == model.log_prob("a b")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "there is no text to learn from"),
        ("blank.txt", b"\n \r\n\t\n", "there is no text to learn from"),
        ("latin.txt", "été".encode("latin-1"), "latin.txt is not UTF-8"),
        ("bad.tsv", b"ab\t2\nba\tmany\n", r"bad.tsv, row 2 is 'ba\\tmany'"),
        ("none.tsv", b"\n\nab\t0\n", r"none.tsv, row 3 is 'ab\\t0'"),
        ("absent.txt", None, "absent.txt cannot be read: No such file"),
    ],
)
def test_input_that_nothing_can_be_learnt_from_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=sentence):
        train(read_weighted(tmp_path / name), 3)


@pytest.mark.parametrize("order", [0, 1, 7])
def test_orders_that_kenlm_cannot_query_are_refused(order: int) -> None:
    with pytest.raises(CorpusError, match="choose 2 to 6"):
        train([("a", 1)], order)


def test_a_model_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    model = train([("ab", 1)], 2)
    write_arpa(model, tmp_path / "kept.arpa")
    before = (tmp_path / "kept.arpa").read_bytes()
    del model.log_probs[1]["ab"]
    model.log_probs[1]["ab"] = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        write_arpa(model, tmp_path / "kept.arpa")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.arpa"]
    assert (tmp_path / "kept.arpa").read_bytes() == before


def test_the_command_line_learns_from_a_text_a_list_and_the_train_labels_of_a_data_set(
    tmp_path: Path, small_dataset: Path
) -> None:
    (tmp_path / "text.txt").write_text("un\ndeux\n", encoding="utf-8")
    for source, out in ((tmp_path / "text.txt", "a.arpa"), (small_dataset, "b.arpa")):
        done = CliRunner().invoke(lm, ["train", str(source), str(tmp_path / out), "--order", "3"])
        assert done.exit_code == 0, done.output
        assert "order 3" in done.output
    labels = [(sample.text, 1) for sample in iterate_samples(small_dataset, "train") if sample.text]
    expected = train(labels, 3)
    texts = ["12", "7", "99", ""]
    found = CharacterLM(tmp_path / "b.arpa").log_probs(texts)
    assert found == pytest.approx([expected.log_prob(text) for text in texts], abs=1e-5)
    refused = CliRunner().invoke(lm, ["train", str(tmp_path / "text.txt"), str(tmp_path / "c.binary")])
    assert refused.exit_code == 1
    assert "must end in .arpa" in refused.output
    assert not (tmp_path / "c.binary").exists()


def test_perplexity_of_unread_french_falls_with_every_order(shared: Path, tmp_path: Path) -> None:
    texts, unread = french(shared, "train"), french(shared, "val")
    found = []
    for order in (2, 3, 4, 5, 6):
        write_arpa(train(((text, 1) for text in texts), order), tmp_path / f"{order}.arpa")
        found.append(perplexity(CharacterLM(tmp_path / f"{order}.arpa"), unread))
    assert found == sorted(found, reverse=True)
    assert found[0] > 12 and found[-1] < 7
