from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel

from glyphrun.decoding.beam import beam
from glyphrun.decoding.scorer import ASKED
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.models.parseq import PARSeq
from glyphrun.models.recognizer import Memory, TokenHypothesis
from glyphrun.models.trocr import TrOCR
from tiny_parseq import log_prob, memory_of, of_items, parseq, texts
from tiny_trocr import encoded, loaded, pictures, taught, tiny
from toy_scorer import Bigrams, BoundedBigrams, Successors

LONGEST = 11  # tokens of a TrOCR's text, its end counted
Found = list[list[tuple[tuple[int, ...], float]]]


@cache
def trocr(kind: str) -> tuple[VisionEncoderDecoderModel, TrOCR, Tensor, Memory]:
    theirs, frames = tiny(kind), pictures(12)
    taught(theirs, frames[:, 0])
    with TemporaryDirectory() as folder:
        ours = loaded(theirs, folder)
    with torch.no_grad():
        return theirs, ours, frames[:, 0], encoded(ours, frames)


def generate(kind: str, width: int, length_penalty: float, early_stopping: bool | str) -> Found:
    """Texts and scores by transformers, where as with us nothing but an end may follow the longest text."""
    theirs, _, frames, _ = trocr(kind)
    output = theirs.generate(
        frames,
        num_beams=width,
        num_return_sequences=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        do_sample=False,
        max_new_tokens=LONGEST,
        prefix_allowed_tokens_fn=lambda _, tokens: [2] if len(tokens) == LONGEST else list(range(40)),
        return_dict_in_generate=True,
        output_scores=True,
    )
    found: Found = [[] for _ in frames]
    for number, (row, score) in enumerate(
        zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True)
    ):
        if score > -1e6:  # what has not ended is scored -1e9 there
            found[number // width].append((tuple(row[1 : row.index(2, 1)]), score))
    return found


def scores(found: list[list[TokenHypothesis]]) -> list[float]:
    return [hypothesis.score for item in found for hypothesis in item]


def assert_same(found: list[list[TokenHypothesis]], expected: Found) -> None:
    assert [[hypothesis.tokens for hypothesis in item] for item in found] == [[text for text, _ in e] for e in expected]
    assert scores(found) == pytest.approx([score for item in expected for _, score in item], abs=1e-4)


@pytest.mark.parametrize("kind", ["base", "large-stage1"])
@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_a_beam_gives_the_n_best_and_scores_of_generate(kind, width, length_penalty):
    _, ours, _, memory = trocr(kind)
    exact = beam(ours, memory, width, width, length_penalty=length_penalty)
    assert_same(exact, generate(kind, width, length_penalty, "never"))
    assert len({item[0].tokens for item in exact}) > 8
    assert len({len(item[0].tokens) for item in exact}) > 4
    early = beam(ours, memory, width, width, length_penalty=length_penalty, early_stop=True)
    assert_same(early, generate(kind, width, length_penalty, True))
    if length_penalty <= 0:  # where the default of generate is exact as well
        assert_same(exact, generate(kind, width, length_penalty, False))


@pytest.mark.parametrize("kind", ["base", "large-stage1", "small"])
def test_a_beam_of_one_writes_what_generate_does_without_beams(kind):
    theirs, ours, frames, memory = trocr(kind)
    output = theirs.generate(
        frames, do_sample=False, max_new_tokens=LONGEST, return_dict_in_generate=True, output_logits=True
    )
    steps = torch.stack(output.logits, dim=1).log_softmax(-1).gather(2, output.sequences[:, 1:, None]).squeeze(2)
    expected: Found = []
    for tokens, log_probs in zip(output.sequences[:, 1:].tolist(), steps.tolist(), strict=True):
        length = tokens.index(2)
        expected.append([(tuple(tokens[:length]), sum(log_probs[: length + 1]))])
    assert_same(beam(ours, memory, 1, 1), expected)
    assert_same(search(ours, memory, DecodeSettings()), expected)


@pytest.mark.parametrize("width", [3, 7])
def test_an_exact_end_is_never_worse_than_the_one_generate_guesses_by_default(width):
    _, ours, _, memory = trocr("large-stage1")
    exact = beam(ours, memory, width, width, length_penalty=2.0)
    guessed = generate("large-stage1", width, 2.0, False)
    differences = [mine[0].score - theirs[0][1] for mine, theirs in zip(exact, guessed, strict=True)]
    assert min(differences) > -1e-4
    assert (max(differences) > 1e-3) == (width == 3)


def test_a_penalty_and_an_early_stop_change_what_is_read():
    _, ours, _, memory = trocr("base")
    plain, favoured = beam(ours, memory, 5, 5), beam(ours, memory, 5, 5, length_penalty=2.0)
    assert sum(len(h.tokens) for item in plain for h in item) < sum(len(h.tokens) for item in favoured for h in item)
    stopped = beam(ours, memory, 5, 5, early_stop=True)
    assert scores(stopped) != scores(plain)
    assert all(len(item) == 5 for item in stopped)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 2.0])
def test_a_beam_as_wide_as_the_space_finds_the_exact_n_best(length_penalty):
    model, memory, space = parseq(3, 3), memory_of(16), texts(3, 3)
    assert len(space) == 40
    lengths = torch.tensor([len(text) + 1 for text in space])
    exact = torch.stack([log_prob(model, memory, text) for text in space], dim=1)  # (B, 40)
    best = (exact / lengths**length_penalty).topk(5, dim=1)
    found = beam(model, memory, 40, 5, length_penalty=length_penalty)
    assert_same(
        found,
        [
            [(space[place], value) for place, value in zip(*item, strict=True)]
            for item in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
    )
    assert len({item[0].tokens for item in found}) > 2
    for item, own in zip(found, exact.tolist(), strict=True):
        for hypothesis in item:
            assert hypothesis.log_prob == pytest.approx(own[space.index(hypothesis.tokens)], abs=1e-4)
            assert sum(hypothesis.token_log_probs) == pytest.approx(hypothesis.log_prob, abs=1e-9)
            assert len(hypothesis.token_log_probs) == len(hypothesis.tokens) + 1


@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"length_penalty": 1.0}, {"early_stop": True}, {"scorer": Bigrams(5)}])
def test_a_beam_reads_the_same_in_a_batch_as_alone(width, options):
    model, memory = parseq(4, 4, end_bias=1.0), memory_of(12)
    for item, found in enumerate(beam(model, memory, width, 2, **options)):
        (alone,) = beam(model, of_items(memory, [item]), width, 2, **options)
        assert_same([found], [[(hypothesis.tokens, hypothesis.score) for hypothesis in alone]])


def test_a_beam_of_one_reads_what_greedy_search_reads():
    model, memory = parseq(4, 6, end_bias=1.0), memory_of(64)
    pairs = zip(beam(model, memory, 1, 1), search(model, memory, DecodeSettings()), strict=True)
    ended = [(narrow, first) for (narrow,), (first,) in pairs if len(first.tokens) <= model.max_length]
    assert len(ended) > 40  # greedy search lists what never ends as well
    for narrow, first in ended:
        assert narrow.tokens == first.tokens
        assert narrow.log_prob == pytest.approx(first.log_prob, abs=1e-4)


def test_a_wider_beam_finds_nothing_worse_on_average():
    model, memory = parseq(5, 5), memory_of(32)
    best = [sum(item[0].log_prob for item in beam(model, memory, width, 1)) for width in (1, 4, 16)]
    assert best[0] < best[1] < best[2] + 1e-6


def test_a_beam_wider_than_the_texts_lists_each_of_them_once():
    model, memory = parseq(1, 2), memory_of(3)
    for item in beam(model, memory, 8, 8):
        assert {hypothesis.tokens for hypothesis in item} == {(), (1,), (1, 1)}
        assert sum(torch.tensor(hypothesis.log_prob).exp() for hypothesis in item) < 1
        assert len(item) == 3


def rows_of_every_step(model: PARSeq, memory: Memory, width: int, n_best: int, **options: object) -> list[int]:
    rows: list[int] = []
    hook = model.decoder.norm.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    beam(model, memory, width, n_best, **options)
    hook.remove()
    return rows


@pytest.mark.parametrize("options", [{}, {"early_stop": True}, {"length_penalty": 1.0}, {"length_penalty": -1.0}])
def test_items_that_are_done_are_not_computed_any_further(options):
    model, memory = parseq(6, 5, end_bias=1.0), memory_of(24)
    steps = [len(rows_of_every_step(model, of_items(memory, [item]), 3, 2, **options)) for item in range(24)]
    together = rows_of_every_step(model, memory, 3, 2, **options)
    assert together == [3 * sum(count > step for count in steps) for step in range(max(steps))]
    assert options or len(set(steps)) > 2


def test_an_early_stop_computes_less():
    model, memory = parseq(6, 5, end_bias=2.0), memory_of(24)
    computed = [
        sum(rows_of_every_step(model, memory, 3, 3, length_penalty=1.0, early_stop=early)) for early in (False, True)
    ]
    assert computed[1] < 0.8 * computed[0]


@pytest.mark.parametrize("scorer", [Bigrams(4), BoundedBigrams(4), BoundedBigrams(4, bonus=3.0)])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_what_else_is_known_counts_inside_the_beam_exactly(scorer, length_penalty):
    model, memory, space = parseq(3, 3), memory_of(16), texts(3, 3)
    own = torch.stack([log_prob(model, memory, text) for text in space], dim=1).double()
    lengths = torch.tensor([len(text) + 1 for text in space])
    fused = (own + torch.tensor([scorer.total(text) for text in space])) / lengths**length_penalty
    best = fused.topk(4, dim=1)
    found = beam(model, memory, 40, 4, length_penalty=length_penalty, scorer=scorer)
    for item, values, places, alone in zip(found, best.values.tolist(), best.indices.tolist(), own, strict=True):
        assert [hypothesis.tokens for hypothesis in item] == [space[place] for place in places]
        assert [hypothesis.score for hypothesis in item] == pytest.approx(values, abs=1e-4)
        assert [h.log_prob for h in item] == pytest.approx(alone[places].tolist(), abs=1e-4)
    assert [item[0].tokens for item in found] != [item[0].tokens for item in beam(model, memory, 40, 1)]


def test_a_scorer_inside_a_narrow_beam_finds_what_the_recognizer_alone_prunes():
    model, memory, scorer = parseq(6, 4, end_bias=-4.0), memory_of(32), Successors(7, weight=4.0)
    fused = beam(model, memory, 3, 3, scorer=scorer)
    reranked = [max(h.log_prob + scorer.total(h.tokens) for h in item) for item in beam(model, memory, 3, 3)]
    gains = [item[0].score - before for item, before in zip(fused, reranked, strict=True)]
    assert min(gains) > -1e-3
    assert sum(gain > 1e-3 for gain in gains) > 16


def test_a_scorer_that_knows_its_most_lets_items_leave_and_reads_the_same():
    model, memory = parseq(6, 5, end_bias=2.0), memory_of(24)
    known, unknown = BoundedBigrams(7, weight=0.2), Bigrams(7, weight=0.2)
    assert_same(
        beam(model, memory, 3, 2, scorer=known),
        [[(h.tokens, h.score) for h in item] for item in beam(model, memory, 3, 2, scorer=unknown)],
    )
    computed = rows_of_every_step(model, memory, 3, 2, scorer=known)
    assert rows_of_every_step(model, memory, 3, 2, scorer=unknown) == [72] * 6
    assert sum(computed) < 0.7 * 72 * 6


def test_a_scorer_is_asked_each_question_once_and_only_about_what_is_likely():
    model, memory = parseq(60, 4), memory_of(1)
    scorer = Bigrams(61)
    beam(model, memory, 2, 2, scorer=scorer)
    assert len(scorer.asked) == len(set(scorer.asked))
    assert 0 not in {token for _, token in scorer.asked}  # the end is asked for by finish
    assert ASKED <= sum(state == 0 for state, _ in scorer.asked) <= ASKED + 1


def cloze_sum(model: PARSeq, memory: Memory, text: tuple[int, ...]) -> float:
    """One pass over one reading of one item, looked up by hand."""
    tokens = torch.zeros(1, model.max_length + 1, dtype=torch.long)
    tokens[0, : len(text)] = torch.tensor(text, dtype=torch.long)
    with torch.no_grad():
        table = model.refine(memory, tokens)[0]
    return sum(float(table[place, token]) for place, token in enumerate((*text, model.end)))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_cloze_pass_ranks_the_hypotheses_of_a_beam_anew(length_penalty):
    model, memory = parseq(4, 4, end_bias=1.0), memory_of(12)
    settings = DecodeSettings(search="beam", width=5, n_best=3, cloze_rescore=True, length_penalty=length_penalty)
    with torch.no_grad():
        found = search(model, memory, settings)
    plain = beam(model, memory, 5, 5, length_penalty=length_penalty)
    for item, (rescored, before) in enumerate(zip(found, plain, strict=True)):
        alone = of_items(memory, [item])
        expected = sorted(
            (
                (cloze_sum(model, alone, h.tokens) / (len(h.tokens) + 1) ** length_penalty, h.tokens, h.log_prob)
                for h in before
            ),
            reverse=True,
        )[:3]
        assert [hypothesis.tokens for hypothesis in rescored] == [tokens for _, tokens, _ in expected]
        assert [hypothesis.score for hypothesis in rescored] == pytest.approx([e[0] for e in expected], abs=1e-4)
        assert [hypothesis.log_prob for hypothesis in rescored] == pytest.approx([e[2] for e in expected], abs=1e-4)
    orders = [[[hypothesis.tokens for hypothesis in item[:3]] for item in ranking] for ranking in (found, plain)]
    assert orders[0] != orders[1]


def test_the_hypotheses_of_an_item_share_its_keys_and_values_in_a_cloze_pass():
    model, memory = parseq(4, 4), memory_of(3)
    rows: list[int] = []
    keys_values = model.decoder.memory_keys_values
    model.decoder.memory_keys_values = lambda given: (rows.append(len(given.tokens)), keys_values(given))[1]
    with torch.no_grad():
        search(model, memory, DecodeSettings(search="beam", width=4, cloze_rescore=True))
    assert rows == [3, 3]


def test_a_recognizer_without_cloze_passes_says_so():
    _, ours, _, memory = trocr("base")
    with pytest.raises(TypeError, match="TrOCR has no non-autoregressive decoding and no refinement"):
        search(ours, memory, DecodeSettings(search="beam", width=3, cloze_rescore=True))
