"""Language models as judges: of whole texts, of tokens inside a beam, n-grams and causal ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from glyphrun.correction import CorrectionError, load_corrector, shallow_scorer, token_texts
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings
from glyphrun.language.causal import CausalLM
from glyphrun.language.fusion import ShallowFusion
from glyphrun.language.lm import CharacterLM, LanguageModelError, perplexity
from glyphrun.language.ngram import train, write_arpa
from glyphrun.models.hub import HubError
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec
from tiny_parseq import memory_of, parseq

TEXTS = ["ab a", "abc", "cab", "ଓଡ଼ିଶା ରାଜ୍ୟ", "ab ab", "bac"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    write_arpa(train(((text, 1) for text in TEXTS), 4), tmp_path / "lm.arpa")
    return tmp_path / "lm.arpa"


def test_characters_one_by_one_add_up_to_the_whole_text(arpa: Path) -> None:
    model = CharacterLM(arpa)
    for text in [*TEXTS, "", "zab", "a\ud800b"]:
        state, total = model.start(), 0.0
        for character in text:
            log_prob, state = model.extend(state, character)
            assert log_prob < 0
            total += log_prob
        assert total + model.finish(state) == pytest.approx(model.log_probs([text])[0])


def test_states_of_equal_pasts_are_equal_and_no_extension_changes_one(arpa: Path) -> None:
    model = CharacterLM(arpa)
    _, after = model.extend(model.start(), "ab")
    before = hash(after)
    longer = {character: model.extend(after, character) for character in "abc "}
    assert hash(after) == before
    assert {character: model.extend(after, character) for character in "abc "} == longer
    # Of a model of order 4 only the last three characters are remembered.
    assert model.extend(model.start(), "cabab")[1] == model.extend(model.start(), "abbab")[1]
    assert model.extend(model.start(), "ab")[1] != model.extend(model.start(), "ba")[1]


def test_both_ways_to_write_a_letter_have_one_probability(arpa: Path) -> None:
    composed, split = CharacterLM(arpa).log_probs(["ଓ\u0b5cିଶା", "ଓଡ\u0b3cିଶା"])
    assert composed == split


def test_perplexity_is_that_of_characters_and_ends(arpa: Path) -> None:
    model = CharacterLM(arpa)
    mean = sum(model.log_probs(["ab", "c"])) / (3 + 2)
    assert perplexity(model, ["ab", "c"]) == pytest.approx(2.718281828**-mean)
    with pytest.raises(ValueError, match="at least one text"):
        perplexity(model, [])


@pytest.mark.parametrize("content", [None, b"", b"no model\n", b"\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.arpa").write_bytes(content)
    with pytest.raises(LanguageModelError, match="bad.arpa"):
        CharacterLM(tmp_path / "bad.arpa")


def test_fusion_adds_the_weighted_model_and_a_bonus_for_each_character(arpa: Path) -> None:
    codec = Codec("abc ", 8)
    settings = CorrectionSettings(language_model=arpa.name, lm_weight=0.3, length_bonus=0.7, lm_fusion="shallow")
    corrector = load_corrector(arpa.parent, settings)
    scorer = shallow_scorer(corrector, settings, codec)
    assert isinstance(scorer, ShallowFusion)
    for text in ("ab ab", "c", ""):
        state, total = scorer.start(), 0.0
        for token in codec.encode(text):
            added, state = scorer.extend(state, token)
            assert added <= scorer.most == pytest.approx(0.7)
            total += added
        expected = 0.3 * CharacterLM(arpa).log_probs([text])[0] + 0.7 * len(text)
        assert total + scorer.finish(state) == pytest.approx(expected)
    assert shallow_scorer(corrector, settings.model_copy(update={"lm_fusion": "rerank"}), codec) is None


def test_a_beam_with_fusion_ranks_by_both_and_reads_what_the_language_has(arpa: Path) -> None:
    codec, recognizer, memory = Codec("abc", 4), parseq(3, 4), memory_of(12)
    settings = CorrectionSettings(language_model=arpa.name, lm_weight=0.8, length_bonus=0.5, lm_fusion="shallow")
    scorer = shallow_scorer(load_corrector(arpa.parent, settings), settings, codec)
    model = CharacterLM(arpa)

    def known(text: str) -> float:
        return 0.8 * model.log_probs([text])[0] + 0.5 * len(text)

    decode = DecodeSettings(search="beam", width=8, n_best=8)
    alone, fused = (search(recognizer, memory, decode, chosen) for chosen in (None, scorer))
    for item in fused:
        for found in item:
            expected = found.log_prob + known(codec.decode(found.tokens))
            assert found.score == pytest.approx(expected, abs=1e-5)
        assert all(better.score >= worse.score for better, worse in pairwise(item))
    best_alone, best_fused = ([codec.decode(item[0].tokens) for item in found] for found in (alone, fused))
    assert best_alone != best_fused
    assert sum(map(known, best_fused)) > sum(map(known, best_alone)) + 0.2


def byte_level() -> Tokenizer:
    """Bytes as tokens, and a few pairs: a letter of Odia is three tokens, none of which is text alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", *alphabet, "ab", "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def pieces_with_spaces() -> Tokenizer:
    """Pieces that begin with the space before their word, as in SentencePiece."""
    pieces = ["</s>", "<unk>", "▁", "▁ab", "ab", "a", "b", "c", "▁a", "▁c", "0", "ରା", "ଜ୍ୟ", "▁ଓଡ଼ିଶା"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def continued_words() -> Tokenizer:
    """Word beginnings and continuations, as in BERT."""
    pieces = ["</s>", "[UNK]", "a", "b", "c", "0", "##0", "##a", "##b", "##c", "ab", "##ab"]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, pieces_with_spaces, continued_words])
def test_fusion_sees_the_characters_that_subwords_stand_for(make, arpa: Path) -> None:
    codec = SubwordCodec(make().to_str(), begin=0, end=0, pad=0, max_length=64)
    model = CharacterLM(arpa)
    scorer = ShallowFusion(model, token_texts(codec), weight=0.5, length_bonus=0.25, longest=9)
    texts = ["ab a", "cab ab", "c"] + ([] if make is continued_words else ["ab ଓଡ଼ିଶା", "ରାଜ୍ୟ"])
    for text in texts:
        tokens = codec.encode(text)
        assert codec.decode(tokens) == text
        state, total = scorer.start(), 0.0
        for token in tokens:
            added, state = scorer.extend(state, token)
            total += added
        shown = text if make is byte_level else f" {text}"  # the other two begin every word with a space
        expected = 0.5 * model.log_probs([shown])[0] + 0.25 * len(shown)
        assert total + scorer.finish(state) == pytest.approx(expected), text


def test_bytes_that_never_become_a_character_are_finite_and_unknown(arpa: Path) -> None:
    codec = SubwordCodec(byte_level().to_str(), begin=0, end=0, pad=0, max_length=64)
    scorer = ShallowFusion(CharacterLM(arpa), token_texts(codec), weight=1.0, length_bonus=0.0, longest=9)
    first = codec.encode("ଓ")[0]
    added, state = scorer.extend(scorer.start(), first)
    assert added == 0.0
    assert scorer.finish(state) < scorer.finish(scorer.start())


def test_a_tokenizer_without_anything_to_join_to_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "word": 1}, unk_token="word"))
    codec = SubwordCodec(tokenizer.to_str(), begin=0, end=0, pad=0, max_length=4)
    with pytest.raises(CorrectionError, match="lm_fusion: rerank"):
        token_texts(codec)


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    """A tiny causal model of bytes at its first weights, with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)  # so that texts differ
    model.save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    return tmp_path / "causal"


def test_a_causal_model_scores_a_batch_as_it_scores_each_text_alone(causal: Path) -> None:
    judge = CausalLM.load(str(causal))
    texts = ["ab a", "", "c", "ଓଡ଼ିଶା", "ab" * 5, "a\ud800b"]
    found = judge.log_probs(texts)
    assert found == pytest.approx([judge.log_probs([text])[0] for text in texts], abs=1e-4)
    model = GPT2LMHeadModel.from_pretrained(causal).eval()
    tokens = torch.tensor([[0, *judge.tokenizer.encode("ab a"), 0]])
    with torch.no_grad():
        steps = model(tokens).logits[0, :-1].log_softmax(-1)
    expected = sum(float(step[token]) for step, token in zip(steps, tokens[0, 1:], strict=True))
    assert found[0] == pytest.approx(expected, abs=1e-4)
    assert judge.log_probs([]) == []


def test_a_text_longer_than_a_causal_model_can_see_is_scored_as_far_as_it_sees(causal: Path) -> None:
    judge = CausalLM.load(str(causal))
    assert judge.longest == 32
    assert judge.log_probs(["c" * 200]) == judge.log_probs(["c" * 31])


def test_a_causal_model_comes_as_safetensors_or_not_at_all(causal: Path) -> None:
    (causal / "model.safetensors").rename(causal / "pytorch_model.bin")
    with pytest.raises(HubError, match="pickles"):
        CausalLM.load(str(causal))


def test_a_causal_model_cannot_follow_a_beam(causal: Path) -> None:
    with pytest.raises(ValueError, match="shallow fusion needs a language_model of characters"):
        CorrectionSettings(language_model="causal", lm_fusion="shallow")
    corrector = load_corrector(causal.parent, CorrectionSettings(language_model="causal", lm_weight=0.2))
    assert isinstance(corrector.language_model, CausalLM)
    assert corrector.lm_weight == 0.2


def test_shallow_fusion_without_a_beam_is_refused_with_the_settings() -> None:
    correction = CorrectionSettings(language_model="lm.arpa", lm_fusion="shallow")
    with pytest.raises(ValueError, match="shallow fusion acts inside a beam and the search is greedy"):
        DecodeSettings(correction=correction)
    assert DecodeSettings(search="beam", width=3, correction=correction).correction == correction
