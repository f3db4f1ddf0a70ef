"""Correction of n-best lists: what changes them, by how much, and what is never lost."""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, inf, log, nan
from pathlib import Path

import numpy as np
import pytest

from glyphrun.correction import CorrectionError, correction_files, load_corrector
from glyphrun.decoding.rescore import CorrectedHypothesis, Corrector, character_log_probs, correct, correct_all
from glyphrun.decoding.settings import CorrectionSettings
from glyphrun.decoding.vote import Hypothesis
from glyphrun.evaluation.metrics import character_error_rate, count_errors
from glyphrun.graphemes import graphemes
from glyphrun.language.confusions import Confusions, learn_confusions, save_confusions
from glyphrun.language.corpus import CorpusError
from glyphrun.language.lexicon import Lexicon
from glyphrun.language.lm import CharacterLM, LanguageModelError
from glyphrun.language.ngram import train, write_arpa
from glyphrun.language.spelling import Speller
from glyphrun.models.hub import HubError
from real_texts import french, misread, odia

FRENCH = {"maison": 50, "Paris": 20, "été": 30, "la": 300, "le": 300, "de": 400, "chat": 8}


class Judge:
    """A language model of a table; all other texts have one probability."""

    def __init__(self, table: dict[str, float], other: float = -50.0) -> None:
        self.table, self.other, self.asked = table, other, []

    def log_probs(self, texts: list[str]) -> list[float]:
        self.asked.append(list(texts))
        return [self.table.get(text, self.other) for text in texts]


def read(text: str, log_prob: float) -> Hypothesis:
    """A hypothesis whose characters and end have equal parts of its log-probability."""
    share = log_prob / (len(text) + 1)
    return Hypothesis(text, log_prob, (share,) * (len(text) + 1), tuple(text))


def spelled(confusions: Confusions | None = None, **settings: float) -> Speller:
    return Speller(Lexicon(FRENCH.items()), confusions or Confusions(), **{"max_edits": 2, "weight": 1.0, **settings})


def test_a_list_is_ranked_by_the_recognizer_the_model_and_the_length_together() -> None:
    n_best = [read("ab", log(0.5)), read("abc", log(0.3)), read("a", log(0.1))]
    judge = Judge({"ab": -9.0, "abc": -4.0, "a": -2.0})
    found = correct(n_best, Corrector(None, judge, lm_weight=0.5, length_bonus=0.25))
    scores = {
        "ab": log(0.5) + 0.5 * -9 + 0.25 * 2,
        "abc": log(0.3) + 0.5 * -4 + 0.25 * 3,
        "a": log(0.1) + 0.5 * -2 + 0.25 * 1,
    }
    assert [hypothesis.text for hypothesis in found] == sorted(scores, key=scores.__getitem__, reverse=True)
    assert found[0].text == "abc"
    # As much speaks for what nobody named as for the three, which therefore still have .9 together.
    everything = sum(map(exp, scores.values()))
    for hypothesis in found:
        assert exp(hypothesis.log_prob) == pytest.approx(0.9 * exp(scores[hypothesis.text]) / everything)
    assert [replace(hypothesis, log_prob=0.0) for hypothesis in found] == [
        replace(n_best[place], log_prob=0.0) for place in (1, 2, 0)
    ]


def test_what_nothing_speaks_for_or_against_keeps_its_order_and_its_probability() -> None:
    n_best = [read("ab", log(0.5)), read("abc", log(0.3)), read("a", log(0.1))]
    for corrector in (
        Corrector(),
        Corrector(None, Judge({}), lm_weight=0.7),
        Corrector(None, Judge({}), lm_weight=0.0),
    ):
        found = correct(n_best, corrector)
        assert [hypothesis.text for hypothesis in found] == ["ab", "abc", "a"]
        assert [hypothesis.log_prob for hypothesis in found] == pytest.approx([log(0.5), log(0.3), log(0.1)])


def test_a_corrected_text_says_what_was_read_and_the_reading_stays_in_the_list() -> None:
    n_best = [read("la maisan", log(0.3))]
    found = correct(n_best, Corrector(spelled()))
    assert [hypothesis.text for hypothesis in found] == ["la maison", "la maisan"]
    first, second = found
    assert isinstance(first, CorrectedHypothesis)
    assert first.read == "la maisan"
    assert (first.token_log_probs, first.pieces) == (n_best[0].token_log_probs, n_best[0].pieces)
    assert not isinstance(second, CorrectedHypothesis)
    # The word's doubt goes to what the lexicon has in its place, the rest to what nobody named.
    word = exp(log(0.3) * 6 / 10)
    speller = spelled()
    meant = 0.3 * (1 - word) / word * 0.01 * exp(speller.evidence("la maison") - speller.evidence("la maisan"))
    named = 0.3 * (1 - word) / word * 0.01
    assert exp(first.log_prob) == pytest.approx(meant / (meant + 0.3 + 1 - 0.3 - named), rel=0.05)
    assert exp(first.log_prob) > 0.8
    assert exp(first.log_prob) + exp(second.log_prob) <= 1


def test_the_doubt_of_one_word_is_that_word_s_and_not_the_line_s() -> None:
    text = "maison maisan"
    doubt = [-1e-4] * 7 + [-0.3] * 6 + [-1e-4]
    doubtful = Hypothesis(text, sum(doubt), tuple(doubt), tuple(text))
    sure = replace(doubtful, token_log_probs=tuple([-0.3] * 6 + [-1e-5] * 8), log_prob=-1.80008)
    assert correct([doubtful], Corrector(spelled()))[0].text == "maison maison"
    assert correct([sure], Corrector(spelled()))[0].text == text


def test_a_reading_of_the_n_best_counts_with_its_own_probability_and_not_as_a_respelling() -> None:
    n_best = [read("maisan", log(0.5)), read("maison", log(0.4))]
    found = correct(n_best, Corrector(spelled()))
    assert [hypothesis.text for hypothesis in found] == ["maison", "maisan"]
    assert not any(isinstance(hypothesis, CorrectedHypothesis) for hypothesis in found)


def test_a_language_model_decides_between_words_that_a_lexicon_offers() -> None:
    lexicon = Speller(Lexicon([("port", 10), ("pont", 11)]), Confusions(), max_edits=1, weight=1.0)
    n_best = [read("le povt de Brest", log(0.05))]
    judge = Judge({"le port de Brest": -20.0, "le pont de Brest": -29.0}, other=-40.0)
    assert correct(n_best, Corrector(lexicon))[0].text == "le pont de Brest"
    found = correct(n_best, Corrector(lexicon, judge, lm_weight=0.5))
    assert [hypothesis.text for hypothesis in found] == ["le port de Brest", "le povt de Brest"]


def test_items_are_weighed_together_and_each_text_once() -> None:
    items = [[read("a", -1.0), read("b", -2.0)], [read("b", -0.5)], []]
    judge = Judge({"a": -3.0, "b": -1.0})
    found = correct_all(items, Corrector(None, judge, lm_weight=1.0))
    assert judge.asked == [["a", "b"]]
    assert [[hypothesis.text for hypothesis in item] for item in found] == [["b", "a"], ["b"], []]
    assert found == [correct(item, Corrector(None, Judge(judge.table), lm_weight=1.0)) for item in items]


def test_characters_take_the_log_probabilities_of_their_pieces() -> None:
    subwords = Hypothesis("la maison", -1.5, (-0.1, -0.2, -0.3, -0.9), (" la", " mai", "son"))
    assert character_log_probs(subwords) == pytest.approx([-0.1, 0, -0.2, 0, 0, 0, -0.3, 0, 0])
    voted = Hypothesis("12", log(0.25), (-0.1, -0.1), ("3", "4"))
    assert character_log_probs(voted) == pytest.approx([log(0.5), log(0.5)])
    assert character_log_probs(Hypothesis("", -0.1, (-0.1,), ())) == []
    assert character_log_probs(Hypothesis("ab", -0.6, (), ("a", "b"))) == pytest.approx([-0.3, -0.3])


def test_no_list_is_emptied_and_no_text_raises(tmp_path: Path) -> None:
    write_arpa(train([("la maison", 1), ("été", 2)], 4), tmp_path / "lm.arpa")
    corrector = Corrector(spelled(), CharacterLM(tmp_path / "lm.arpa"), lm_weight=0.5, length_bonus=0.3)
    rng = random.Random(0)
    alphabet = [
        *"la maison été'-.0",
        "\x00",
        "\ud800",
        "\u0301",
        "\u200d",
        "\ufeff",
        "\u2581",
        "କ୍ଷ",
        "👩\u200d🔬",
        "\n",
    ]
    for _ in range(150):
        n_best = []
        for _ in range(rng.randrange(1, 4)):
            text = "".join(rng.choices(alphabet, k=rng.randrange(0, 14)))
            log_prob = rng.choice([-rng.random() * 9, 0.0, -inf, -1e9])
            pieces = rng.choice([tuple(text), (), ("x",)])
            n_best.append(Hypothesis(text, log_prob, tuple(-rng.random() for _ in (*pieces, 0)), pieces))
        found = correct(n_best, corrector)
        assert len(n_best) <= len(found) <= len(n_best) + 1
        assert sorted(
            hypothesis.text for hypothesis in found if not isinstance(hypothesis, CorrectedHypothesis)
        ) == sorted(hypothesis.text for hypothesis in n_best)
        assert all(hypothesis.log_prob <= 0 for hypothesis in found)
    assert correct([], corrector) == []
    hopeless = [read("maisan", -inf), Hypothesis("b", nan, (nan,), ("b",))]
    assert [hypothesis.text for hypothesis in correct(hopeless, corrector)] == ["maisan", "b"]


def test_a_language_model_finds_more_of_what_was_written_in_lists_of_french(shared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write_arpa(train(((line, 1) for line in french(shared, "train")), 6), tmp_path / "lm.arpa")
    truths = french(shared, "val")[:250]
    items = []
    for truth in truths:
        texts = dict.fromkeys([truth, *(misread(truth, rng) for _ in range(4))])
        # The recognizer does not tell them apart: its log-probabilities are noise.
        items.append(
            sorted((read(text, float(rng.normal(-4, 2))) for text in texts), key=lambda found: -found.log_prob)
        )
    model = CharacterLM(tmp_path / "lm.arpa")

    def rate(corrector: Corrector) -> float:
        texts = [found[0].text for found in correct_all(items, corrector)]
        return character_error_rate(count_errors(truths, texts), resamples=10).value

    before, after = rate(Corrector()), rate(Corrector(None, model, lm_weight=0.5, length_bonus=0.5))
    assert before > 0.05
    assert after < before / 3


def test_lines_of_french_are_read_better_with_a_lexicon_and_with_a_language_model_beside_it(
    shared: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    lines, truths = french(shared, "train"), french(shared, "val")[:120]
    learnt = learn_confusions((line, misread(line, rng)) for line in lines[:600])
    write_arpa(train(((line, 1) for line in lines), 6), tmp_path / "lm.arpa")
    items = []
    for truth in truths:
        text = misread(truth, rng)
        # Wrong characters are less sure than right ones, as far as a recognizer knows.
        sure = [float(rng.beta(5, 3) if other != letter else rng.beta(60, 1))
                for letter, other in zip(text, truth.ljust(len(text)), strict=False)]  # fmt: skip
        log_probs = [*map(log, sure[: len(text)]), -0.01]
        items.append([Hypothesis(text, sum(log_probs), tuple(log_probs), tuple(text))])
    speller = Speller(Lexicon.of_texts((line, 1) for line in lines), learnt, max_edits=2, weight=1.0)
    model = CharacterLM(tmp_path / "lm.arpa")

    def rate(corrector: Corrector) -> float:
        texts = [found[0].text for found in correct_all(items, corrector)]
        return character_error_rate(count_errors(truths, texts), resamples=10).value

    read_rate, with_words = rate(Corrector()), rate(Corrector(speller))
    with_both = rate(Corrector(speller, model, lm_weight=0.3, length_bonus=0.45))
    assert read_rate > 0.04
    assert max(with_words, with_both) < 0.7 * read_rate


def test_no_odia_cluster_is_divided_by_a_correction(shared: Path) -> None:
    words = odia(shared)[:3000]
    corrector = Corrector(Speller(Lexicon((word, 1) for word in words), Confusions(), max_edits=2, weight=1.0))
    whole = {cluster for word in corrector.speller.lexicon.words for cluster in graphemes(word)}
    changed = 0
    for before, after in zip(words[200:400:4], words[201:401:4], strict=True):
        clusters = graphemes(before)
        text = "".join(clusters[:-1]) + " " + after
        for found in correct([read(text, log(0.05))], corrector):
            changed += found.text != text
            offered = {cluster for cluster in graphemes(found.text) if cluster not in graphemes(text)}
            assert offered <= whole
    assert changed > 10


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A lexicon, its confusions and a language model, in folders as a person keeps them."""
    (tmp_path / "words").mkdir()
    Lexicon(FRENCH.items()).save(tmp_path / "words" / "french.tsv")
    save_confusions(learn_confusions([("maison", "maisan")] * 9), tmp_path / "words" / "mine.json")
    write_arpa(train([("la maison", 3), ("le chat", 2)], 5), tmp_path / "french.arpa")
    return tmp_path


def test_the_files_of_a_correction_move_into_a_bundle_and_correct_there_as_before(files: Path, tmp_path: Path) -> None:
    given = CorrectionSettings(
        lexicon="words/french.tsv", confusions="words/mine.json", language_model="french.arpa", lm_weight=0.4
    )
    kept, copied = correction_files(given, files)
    assert copied == {
        "french.arpa": files / "french.arpa",
        "french.tsv": files / "words" / "french.tsv",
        "mine.json": files / "words" / "mine.json",
    }
    assert kept == given.model_copy(update={"lexicon": "french.tsv", "confusions": "mine.json"})
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, source in copied.items():
        (bundle / name).write_bytes(source.read_bytes())
    n_best = [read("la maisan", log(0.5)), read("la naison", log(0.2))]
    there, here = correct(n_best, load_corrector(bundle, kept)), correct(n_best, load_corrector(files, given))
    assert there == here
    assert there[0].text == "la maison"


def test_a_causal_model_s_folder_is_copied_and_a_hub_name_is_kept(files: Path) -> None:
    (files / "models" / "tiny").mkdir(parents=True)
    (files / "models" / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    kept, copied = correction_files(CorrectionSettings(language_model="models/tiny"), files)
    assert (kept.language_model, list(copied)) == ("tiny", ["tiny/config.json"])
    hub = CorrectionSettings(language_model="owner/model")
    assert correction_files(hub, files) == (hub, {})


def test_files_that_are_absent_or_of_one_name_are_named(files: Path) -> None:
    with pytest.raises(CorrectionError, match=r"correction.lexicon: there is no file .*none.tsv"):
        correction_files(CorrectionSettings(lexicon="none.tsv"), files)
    (files / "french.tsv").write_text("{}", encoding="utf-8")
    twice = CorrectionSettings(lexicon="words/french.tsv", confusions="french.tsv")
    with pytest.raises(CorrectionError, match="a bundle has room for one french.tsv"):
        correction_files(twice, files)
    with pytest.raises(CorpusError, match=r"none.tsv cannot be read"):
        load_corrector(files, CorrectionSettings(lexicon="none.tsv"))
    with pytest.raises(LanguageModelError, match=r"there is no language model .*none.arpa"):
        load_corrector(files, CorrectionSettings(language_model="none.arpa"))
    with pytest.raises(HubError, match="there is no folder ./none"):
        load_corrector(files, CorrectionSettings(language_model="./none"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "correction needs a lexicon or a language_model"),
        ({"language_model": "lm.arpa", "confusions": "c.json"}, "name the lexicon too"),
        ({"lexicon": "words.tsv", "max_edits": 5}, "max_edits"),
        ({"lexicon": "words.tsv", "lm_fusion": "shallow"}, "shallow fusion needs a language_model of characters"),
        ({"lexicons": "words.tsv"}, "lexicons"),
    ],
)
def test_settings_that_cannot_correct_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CorrectionSettings(**settings)
