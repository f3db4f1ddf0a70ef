"""Lexicons: what counts as a word, which confusions are learnt, and which words are corrected into which."""

from __future__ import annotations

from math import exp, inf, log
from pathlib import Path

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from typer.testing import CliRunner

from glyphrun.bundle import load_engine, save_bundle
from glyphrun.cli.language import lexicon as verbs
from glyphrun.data.batches import load_split
from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings
from glyphrun.evaluation.evaluate import read_split
from glyphrun.graphemes import graphemes
from glyphrun.images import ImageProcessor
from glyphrun.language.confusions import Confusions, learn_confusions, load_confusions, save_confusions
from glyphrun.language.corpus import CorpusError
from glyphrun.language.lexicon import Lexicon, spans, words
from glyphrun.language.neighbours import Neighbours
from glyphrun.language.spelling import Speller
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec, normalise
from real_texts import french, misread, odia

DOUBTFUL = log(0.5)


def best(speller: Speller, text: str, log_prob: float = DOUBTFUL) -> str:
    """The text of highest evidence and log-odds, each of its words having been read with the same probability."""
    share = [log_prob / max(len(word), 1) for word in text.split(" ") for _ in (*word, " ")][: len(text)]
    options = [(text, 0.0), *speller.respellings(text, share)]
    return max(options, key=lambda option: option[1] + speller.evidence(option[0]))[0]


def speller(counts: dict[str, int], confusions: Confusions | None = None, **settings: float) -> Speller:
    options = {"max_edits": 2, "weight": 1.0, **settings}
    return Speller(Lexicon(counts.items()), confusions or Confusions(), **options)


FRENCH = {"maison": 50, "Paris": 20, "été": 30, "forêt": 9, "la": 300, "le": 300, "de": 400, "chat": 8, "du Laos": 3}


def test_words_are_letters_and_numerals_and_nothing_is_lost_between_them() -> None:
    text = "L’été, «à Paris» — 1 988 fois… l'aujourd'hui! କମ୍\u200c ଶ୍ରେଣୀ:ମନ"
    assert words(text) == [
        "L",
        "été",
        "à",
        "Paris",
        "1",
        "988",
        "fois",
        "l",
        "aujourd",
        "hui",
        "କମ୍\u200c",
        "ଶ୍ରେଣୀ",
        "ମନ",
    ]
    assert "".join(span.text for span in spans(text)) == text
    assert all(text[span.start : span.start + len(span.text)] == span.text for span in spans(text))


def test_a_word_list_is_written_by_frequency_and_read_back_the_same(tmp_path: Path) -> None:
    made = Lexicon([("e\u0301te\u0301", 2), ("été", 1), ("la maison", 5), ("||", 9), ("maison", 1)])
    made.save(tmp_path / "words.tsv")
    assert (tmp_path / "words.tsv").read_text(encoding="utf-8") == "la maison\t5\nété\t3\nmaison\t1\n"
    again = Lexicon.load(tmp_path / "words.tsv")
    assert (again.entries, again.words, again.phrases) == (made.entries, made.words, made.phrases)
    assert again.words == {"été": 3, "la": 5, "maison": 6}
    assert again.phrases == {"la maison": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["words.tsv"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "a lexicon needs at least one word"),
        (b"||\n...\t3\n", "a lexicon needs at least one word"),
        (b"maison\t3\n\nchat\tdeux\n", r"row 3 is 'chat\\tdeux': a row is a word, a tab and a whole number"),
        (b"chat\t-1\n", "row 1"),
        ("été".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_word_list_that_cannot_be_used_is_named_with_its_row(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "words.tsv").write_bytes(content)
    with pytest.raises(CorpusError, match=sentence) as caught:
        Lexicon.load(tmp_path / "words.tsv")
    assert str(tmp_path / "words.tsv") in str(caught.value)


def test_plain_lists_windows_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfmaison\r\nchat\t4\r\n\r\nmaison\r\n")
    assert Lexicon.load(tmp_path / "words.txt").words == {"maison": 2, "chat": 4}


def test_the_shares_of_words_and_of_their_letters_are_those_counted_by_hand() -> None:
    lexicon = Lexicon([("ab", 3), ("A", 1)])
    assert lexicon.share("ab") == 3 / 4
    assert lexicon.share("Ab") == pytest.approx(0.1 * 3 / 4)
    assert lexicon.share("AB") == pytest.approx(0.01 * 3 / 4)
    assert lexicon.share("a") == 0.0  # an entry with a capital is a name
    # Clusters: a 4, b 3, four ends; each has one more, and one is left for what no word has.
    assert lexicon.drawn(["a", "B"]) == pytest.approx(log(5 / 15) + log(4 / 15) + log(5 / 15))
    assert lexicon.drawn(["z"]) == pytest.approx(log(1 / 15) + log(5 / 15))
    assert lexicon.new == 1 / 4
    assert Lexicon([("ab", 1), ("c", 1)]).new == 0.5


def test_confusions_are_counted_along_the_alignment() -> None:
    learnt = learn_confusions(
        [("maison", "maisan"), ("chat", "hat"), ("été", "étée"), ("e\u0301", "é"), ("xyz", "abc")]
    )
    assert learnt.read["o"] == {"a": 1}
    assert learnt.read["é"] == {"é": 3}
    assert learnt.missed == {"c": 1}
    assert learnt.invented == {"e": 1}
    assert "x" not in learnt.read  # a reading without anything of its truth teaches nothing
    assert learnt.errors == (1, 1, 1)
    assert learnt.characters == 6 + 4 + 3 + 1


def test_without_counts_every_edit_costs_the_same() -> None:
    plain = Confusions()
    assert plain.cost("abc", "abc") == 0.0
    single = plain.cost("abc", "abd")
    assert single == plain.cost("abc", "ab") == plain.cost("abc", "abcd") == plain.cheapest == pytest.approx(log(100))
    assert plain.cost("kitten", "sitting") == pytest.approx(3 * single)


def test_learnt_costs_are_the_probabilities_that_were_seen() -> None:
    pairs = [("uuuuuuuuuu", "uuuuuuuuun")] * 100 + [("zzzz", "zzzz")] * 10
    learnt = learn_confusions(pairs)
    assert learnt.characters == 1040
    assert exp(-learnt.substitution("u", "n")) == pytest.approx(0.1, rel=0.05)
    assert learnt.substitution("u", "n") == learnt.cheapest
    assert learnt.substitution("u", "n") + 4 < learnt.substitution("u", "z")
    assert learnt.substitution("z", "n") < learnt.substitution("u", "z")  # less is known of z than of u
    assert learnt.cost("jour", "jonr") == learnt.substitution("u", "n")
    total = learnt.deletion("u") + learnt.insertion("n")
    assert learnt.cost("u", "n") == min(learnt.substitution("u", "n"), total)


def test_the_cheapest_alignment_is_found_by_trying_all() -> None:
    rng = np.random.default_rng(0)
    learnt = learn_confusions(
        [("".join(rng.choice(list("abc"), 6)), "".join(rng.choice(list("abcd"), 6))) for _ in range(90)]
    )

    def cost(truth: str, reading: str) -> float:
        if not truth and not reading:
            return 0.0
        ways = [inf]
        if truth:
            ways.append(learnt.deletion(truth[0]) + cost(truth[1:], reading))
        if reading:
            ways.append(learnt.insertion(reading[0]) + cost(truth, reading[1:]))
        if truth and reading:
            step = 0.0 if truth[0] == reading[0] else learnt.substitution(truth[0], reading[0])
            ways.append(step + cost(truth[1:], reading[1:]))
        return min(ways)

    for truth, reading in (("abca", "badc"), ("", "ab"), ("cab", ""), ("aabb", "bbaa"), ("abc", "abc")):
        assert learnt.cost(truth, reading) == pytest.approx(cost(truth, reading))


def test_confusions_come_back_from_their_file_and_a_broken_one_is_named(tmp_path: Path) -> None:
    learnt = learn_confusions([("ଶ୍ରେଣୀ", "ଶେଣୀ"), ("maison", "maisan"), ("a", "a")])
    assert learnt.read["ଶ୍ରେ"] == {"ଶେ": 1}
    save_confusions(learnt, tmp_path / "confusions.json")
    again = load_confusions(tmp_path / "confusions.json")
    assert again == learnt
    assert again.cost("nos", "nas") == learnt.cost("nos", "nas")
    for content, sentence in (
        ("{}x", "Invalid JSON"),
        ('{"read": {"a": {"b": -1}}}', "read.a.b"),
        ('{"x": 1}', "at x"),
    ):
        (tmp_path / "bad.json").write_text(content, encoding="utf-8")
        with pytest.raises(CorpusError, match=sentence) as caught:
            load_confusions(tmp_path / "bad.json")
        assert "bad.json" in str(caught.value)


def test_neighbours_are_all_entries_within_the_edits_counted_in_clusters() -> None:
    entries = ["ଶ୍ରେଣୀ", "ଶେଣୀ", "ଶଣୀ", "କ୍ଷ", "କ୍ଷଣ", "Maison", "maisons", "liaison", "été"]
    index = Neighbours(entries)

    def near(text: str, edits: int) -> dict[str, int]:
        return {"".join(entry): distance for entry, distance in index.near(tuple(graphemes(text)), edits)}

    assert near("ଶ୍ରେଣୀ", 1) == {"ଶ୍ରେଣୀ": 0, "ଶେଣୀ": 1, "ଶଣୀ": 1}  # a conjunct is one edit from any other cluster
    assert near("କଣ", 1) == {"କ୍ଷଣ": 1}
    assert near("MAISON", 1) == {"Maison": 0, "maisons": 1}
    assert near("maison", 2) == {"Maison": 0, "maisons": 1, "liaison": 2}
    assert near("ଜ୍ଞ", 0) == {}


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("maisan", "maison"),
        ("Maisan", "Maison"),
        ("MAISAN", "MAISON"),
        ("Pariz", "Paris"),
        ("(maisan),", "(maison),"),
        ("la maisan de l'éte.", "la maison de l'été."),
        ("forét", "forêt"),
        ("maison", "maison"),
        ("PARIS", "PARIS"),
        ("MAISON", "MAISON"),
        ("de 1988", "de 1988"),
        ("x", "x"),
        ("zzzzzz", "zzzzzz"),
        ("dv Laos", "du Laos"),
        ("  la  maisan ", "  la  maison "),
        ("", ""),
        ("…", "…"),
    ],
)
def test_doubtful_words_become_known_ones_and_the_rest_stays(read: str, expected: str) -> None:
    assert best(speller(FRENCH), read) == expected


def test_what_a_recognizer_is_sure_of_stays_as_it_is_though_no_list_has_it() -> None:
    of_french = speller(FRENCH)
    assert best(of_french, "maisan", log(0.3)) == "maison"
    assert best(of_french, "maisan", log(0.9999)) == "maisan"
    assert best(of_french, "chot", log(0.2)) == "chat"


def test_a_more_frequent_word_is_preferred_and_the_weight_says_how_much() -> None:
    counts = {"port": 1, "pont": 400, **FRENCH}
    assert best(speller(counts), "povt") == "pont"
    seen = learn_confusions([("n" * 20 + "r" * 20, "n" * 20 + "r" * 17 + "vvv")] * 30)
    assert best(speller(counts, seen, weight=0.3), "povt", log(0.1)) == "port"
    assert best(speller(counts, seen, weight=2.0), "povt", log(0.1)) == "pont"


def test_numbers_are_corrected_only_where_the_whole_text_is_one() -> None:
    numbers = speller({"12": 5, "34": 5, "maison": 2})
    assert best(numbers, "17", log(0.05)) == "12"
    assert best(numbers, "17 maison", log(0.05)) == "17 maison"


def test_no_edits_leave_every_text_as_it_is() -> None:
    assert speller(FRENCH, max_edits=0).respellings("maisan", [-1.0] * 6) == []


def test_a_text_of_nothing_but_odd_characters_is_left_alone() -> None:
    of_french = speller(FRENCH)
    for text in ("\ud800\ud801", "\x00", "\u0301", "👩\u200d🔬", "\u200d\u200c", "ab\udfffcd", "İSTANBUL", "ß" * 40):
        assert best(of_french, text) == text


def test_a_conjunct_is_one_error_and_is_replaced_whole() -> None:
    of_odia = speller({"ଶ୍ରେଣୀ": 4, "କ୍ଷଣ": 9, "ସ୍ତ୍ରୀ": 3, "ରାଜ୍ୟ": 8, "ଓଡ଼ିଶା": 9})
    assert best(of_odia, "ଶେଣୀ: ଓଡଶା।") == "ଶ୍ରେଣୀ: ଓଡ଼ିଶା।"
    assert best(of_odia, "ଶେଣୀ: ଓଡଶ") == "ଶ୍ରେଣୀ: ଓଡଶ"  # two clusters in three are wrong
    assert best(of_odia, "ସ୍ତୀ") == "ସ୍ତୀ"  # one cluster alone, and that is wrong


def test_learnt_confusions_correct_more_french_words_than_plain_edits(shared: Path) -> None:
    lines = french(shared, "train")
    known = Lexicon.of_texts((line, 1) for line in lines)
    rng = np.random.default_rng(5)
    learnt = learn_confusions((line, misread(line, rng)) for line in lines[:600])
    assert learnt.substitution("u", "n") < 3 < 8 < learnt.substitution("u", "z")
    long = [word for line in lines[600:] for word in words(line) if len(word) > 2]
    truths = [str(word) for word in rng.choice(long, 500)]
    readings = [misread(word, rng) for word in truths]
    assert sum(read == truth for read, truth in zip(readings, truths, strict=True)) < 330

    def right(confusions: Confusions, log_prob: float) -> int:
        corrects = Speller(known, confusions, max_edits=2, weight=1.0)
        return sum(best(corrects, read, log_prob) == truth for read, truth in zip(readings, truths, strict=True))

    assert right(learnt, log(0.9)) > right(Confusions(), log(0.9)) + 40
    # With more doubt plain edits correct more, and more of what is right as well.
    assert right(learnt, log(0.5)) > right(Confusions(), log(0.5)) + 10
    assert right(learnt, log(0.9)) > 440


def test_odia_words_are_corrected_by_whole_clusters(shared: Path) -> None:
    every = [normalise(word) for word in odia(shared)]
    known = Lexicon((word, 1) for word in every)
    corrects = Speller(known, Confusions(), max_edits=1, weight=1.0)
    rng = np.random.default_rng(1)
    clusters = sorted({cluster for word in every[:3000] for part in words(word) for cluster in graphemes(part)})
    long = [word for word in every if len(graphemes(word)) > 4 and words(word) == [word]]
    mended = 0
    for truth in (str(word) for word in rng.choice(long, 60)):
        parts = graphemes(truth)
        place = int(rng.integers(len(parts)))
        reading = "".join([*parts[:place], str(rng.choice(clusters)), *parts[place + 1 :]])
        for text, _ in corrects.respellings(reading, [-0.2] * len(reading)):
            assert text in known.words
            assert Levenshtein.distance(graphemes(text), graphemes(reading)) == 1
        mended += best(corrects, reading) == truth
    assert mended > 45


def test_the_command_line_builds_a_lexicon_of_texts_and_of_lists(tmp_path: Path, small_dataset: Path) -> None:
    (tmp_path / "text.txt").write_text("La maison.\nla maison, l'été\n", encoding="utf-8")
    (tmp_path / "list.tsv").write_text("du Laos\t2\nchat\n", encoding="utf-8")
    made = {}
    for source in (tmp_path / "text.txt", tmp_path / "list.tsv", small_dataset):
        done = CliRunner().invoke(verbs, ["build", str(source), str(tmp_path / f"{source.stem}.out.tsv")])
        assert done.exit_code == 0, done.output
        made[source.stem] = Lexicon.load(tmp_path / f"{source.stem}.out.tsv").entries
    assert made["text"] == {"maison": 2, "La": 1, "la": 1, "l": 1, "été": 1}
    assert made["list"] == {"du Laos": 2, "chat": 1}
    assert all(entry.isdecimal() for entry in made["small"])
    refused = CliRunner().invoke(verbs, ["build", str(tmp_path / "text.txt"), str(tmp_path / "words.csv")])
    assert (refused.exit_code, "must end in .tsv" in refused.output) == (1, True)


def test_the_command_line_learns_the_confusions_of_a_bundle_without_its_correction(
    tmp_path: Path, small_dataset: Path
) -> None:
    codec = Codec(DIGITS, 1)  # and a place for the end, which this recognizer fills with a digit too
    torch.manual_seed(0)
    recognizer = build(recognizer_settings("parseq-nano", {"fusion": "concatenate"}), codec)
    with torch.no_grad():
        recognizer.head.bias[codec.encode("1")[0]] += 4  # at its first weights it would read nothing at all
    processor = ImageProcessor(height=40, width=40)
    Lexicon([("12", 9), ("34", 9)]).save(tmp_path / "numbers.tsv")
    correction = CorrectionSettings(lexicon=str(tmp_path / "numbers.tsv"), lexicon_weight=5.0)
    learnt = []
    for name, decode in (("plain", DecodeSettings()), ("corrected", DecodeSettings(correction=correction))):
        save_bundle(
            tmp_path / name,
            name=name,
            recognizer=recognizer,
            codec=codec,
            processor=processor,
            decode=decode,
            metrics={},
            provenance={},
        )
        out = tmp_path / f"{name}.json"
        done = CliRunner().invoke(verbs, ["confusions", str(tmp_path / name), str(small_dataset), str(out)])
        assert done.exit_code == 0, done.output
        learnt.append(load_confusions(out))
    assert learnt[0] == learnt[1]
    assert learnt[0].characters > 0
    engine = load_engine(tmp_path / "plain")
    labelled = load_split(small_dataset, "val", processor)
    readings = [found.text for found in read_split(engine, labelled)]
    corrected = [found.text for found in read_split(load_engine(tmp_path / "corrected"), labelled)]
    assert (set(readings), set(corrected)) == ({"11"}, {"12"})
    assert learnt[0] == learn_confusions(zip(labelled.texts, readings, strict=True))
    wrong, missed, invented = learnt[0].errors
    assert (
        f"of {learnt[0].characters} characters {wrong} read wrong, {missed} missed; {invented} invented" in done.output
    )
