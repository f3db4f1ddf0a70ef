from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch

from glyphrun.decoding.vote import VoteRules, vote
from glyphrun.decoding.windows import window_rows
from glyphrun.engine import Engine
from glyphrun.graphemes import graphemes
from glyphrun.images import FrameStack, ImageError, encode_image, pad_stacks
from glyphrun.prediction import Prediction
from stretched import engine_for, recognizer

RECOGNIZERS = [(kind, fusion) for kind in ("parseq", "query-digits") for fusion in ("none", "attention", "concatenate")]


def engine_of(kind: str, fusion: str, **settings: object) -> Engine:
    return engine_for(recognizer(kind, fusion, seed=12), **{"vote_floor": 0.0, **settings})


@pytest.fixture(scope="module")
def items() -> list[list[bytes]]:
    """Stills and tracklets of up to six frames, of many sizes and formats."""
    rng = np.random.default_rng(0)
    return [
        [
            encode_image(
                rng.integers(0, 40 * (1 + number % 6), (*rng.integers(8, 60, 2), 3), np.uint8),
                format="PNG" if frame % 2 else "BMP",
            )
            for frame in range(1 + number % 6)
        ]
        for number in range(14)
    ]


def assert_same(one: list[Prediction], other: list[Prediction]) -> None:
    """Equal but for the time they took and the last bits of a float."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert (first.text, first.abstained, first.provenance) == (second.text, second.abstained, second.provenance)
        assert [found.text for found in first.n_best] == [found.text for found in second.n_best]
        assert [found.log_prob for found in first.n_best] == pytest.approx(
            [found.log_prob for found in second.n_best], abs=1e-4
        )
        assert [vote.text for vote in first.votes] == [vote.text for vote in second.votes]


@pytest.mark.parametrize(("kind", "fusion"), RECOGNIZERS)
def test_bytes_pixels_and_tensors_are_read_alike(kind, fusion, items):
    engine = engine_of(kind, fusion)
    read = engine.read(items)
    assert len({prediction.text for prediction in read}) > 1
    prepared = [engine.prepare(frames, name="x") for frames in items]
    assert_same(read, engine.read_prepared(prepared))
    frames, mask, sizes = map(torch.from_numpy, pad_stacks(prepared))
    assert_same(read, engine.read_batch(frames, mask, sizes))


@pytest.mark.parametrize(("kind", "fusion"), RECOGNIZERS)
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_the_company_in_a_batch_does_not_change_an_answer(kind, fusion, search, items):
    engine = engine_of(kind, fusion, search=search, width=3 if search == "beam" else 1)
    together = engine.read(items, explain=True)
    assert len({prediction.text for prediction in together}) > 1
    assert_same(together, [engine.read([frames], explain=True)[0] for frames in items])
    assert_same(together[::-1], engine.read(items[::-1], explain=True))


@pytest.mark.parametrize(("kind", "fusion"), RECOGNIZERS)
def test_explaining_gives_one_ballot_a_frame_and_changes_no_answer(kind, fusion, items):
    engine = engine_of(kind, fusion)
    plain, explained = engine.read(items), engine.read(items, explain=True)
    assert [prediction.text for prediction in plain] == [prediction.text for prediction in explained]
    for frames, before, after in zip(items, plain, explained, strict=True):
        assert [ballot.frame for ballot in after.votes] == list(range(len(frames)))
        assert len(before.votes) == (len(frames) if fusion == "none" else 0)


@pytest.mark.parametrize(("kind", "fusion"), RECOGNIZERS)
def test_a_ballot_is_what_the_frame_reads_as_alone(kind, fusion, items):
    engine = engine_of(kind, fusion)
    tracklet = items[5]
    ballots = engine.read([tracklet], explain=True)[0].votes
    alone = engine.read([[frame] for frame in tracklet], explain=True)
    assert [ballot.text for ballot in ballots] == [prediction.votes[0].text for prediction in alone]
    assert [ballot.confidence for ballot in ballots] == pytest.approx(
        [prediction.votes[0].confidence for prediction in alone], abs=1e-4
    )


def test_frames_read_alone_win_by_their_summed_probabilities(items):
    engine = engine_of("query-digits", "none", n_best=111)
    prediction = engine.read([items[5]])[0]
    sums: dict[str, float] = {}
    for frame in items[5]:
        ranked = engine.recognizer.rank(
            engine.recognizer.encode(
                engine.processor.normalise(torch.from_numpy(engine.prepare([frame], name="x").pixels)[None]),
                torch.ones(1, 1, dtype=torch.bool),
            ),
            111,
        )[0]
        if not ranked[0].tokens:
            continue  # a frame that says nothing is readable has no second choice to add
        for found in ranked:
            text = engine.codec.decode(found.tokens)
            if text:
                sums[text] = sums.get(text, 0.0) + exp(found.log_prob)
    assert prediction.text == max(sums, key=lambda text: sums[text])
    assert prediction.confidence == pytest.approx(max(sums.values()) / sum(sums.values()), abs=1e-4)


@pytest.mark.parametrize("method", ["sum", "majority", "confidence", "longest", "rover", "mbr"])
@pytest.mark.parametrize(
    ("fusion", "windows"), [("none", {}), ("attention", {"windows": 3, "window_frames": 2})], ids=["frames", "windows"]
)
def test_frames_and_windows_vote_by_one_set_of_rules(fusion, windows, method, items):
    rules = VoteRules(method, 0.1, length_priors={1: 1.0, 2: 0.01}, segment=graphemes)
    asked = {"n_best": 111, "vote": method, "vote_floor": rules.floor, "length_priors": rules.length_priors}
    engine, plain = engine_of("query-digits", fusion, **asked, **windows), engine_of("query-digits", fusion, n_best=111)
    changed = 0
    for frames, prediction in zip(items, engine.read(items), strict=True):
        voters = window_rows(len(frames), 3, 2) if windows else [[frame] for frame in range(len(frames))]
        readings = [plain.read([[frames[number] for number in voter]])[0].n_best for voter in voters]
        ranked, weights = vote(readings, rules)
        assert prediction.text == ranked[0].text
        assert prediction.confidence == pytest.approx(exp(ranked[0].log_prob), abs=1e-4)
        assert [ballot.weight for ballot in prediction.votes] == pytest.approx(weights, abs=1e-4)
        changed += ranked[0].text != vote(readings, VoteRules(method, segment=graphemes))[0][0].text
    assert changed or method == "longest"


def test_a_tracklet_whose_frames_are_all_under_the_floor_is_read_as_nothing_and_abstains(items):
    tracklets = [frames for frames in items if len(frames) > 1]
    read = engine_of("query-digits", "none", vote_floor=0.9999, abstain_below=0.5).read(tracklets)
    for prediction in read:
        assert prediction.text == "" and not any(ballot.weight for ballot in prediction.votes)
        # What is left to be sure of is that some frames say themselves that nothing is readable in them.
        silent = sum(ballot.confidence for ballot in prediction.votes if not ballot.text)
        share = silent / sum(ballot.confidence for ballot in prediction.votes)
        assert prediction.confidence == pytest.approx(share, abs=1e-6)
        assert prediction.abstained == (share < 0.5)
    assert {prediction.abstained for prediction in read} == {True, False}


@pytest.mark.parametrize(
    ("batch", "names", "sentence"),
    [
        ([["good"], ["good", "bad"]], None, "item 1, frame 1 is not a readable"),
        ([["bad"]], None, "item 0 is not a readable"),
        ([["good"], ["bad", "good"]], ["a.png", "b"], "b, frame 0 is not a readable"),
        ([["good", "empty"]], None, "item 0, frame 1 is empty"),
    ],
)
def test_a_bad_image_is_named_by_item_and_frame(items, batch, names, sentence):
    data = {"good": items[0][0], "bad": b"GIF89a but no more", "empty": b""}
    with pytest.raises(ImageError, match=sentence):
        engine_of("parseq", "none").read([[data[key] for key in frames] for frames in batch], names=names)


def test_an_item_without_frames_is_refused_and_no_items_are_no_answers(items):
    engine = engine_of("parseq", "none")
    with pytest.raises(ValueError, match="item 1 has no frames"):
        engine.read([items[0], []])
    assert engine.read([]) == []


def test_an_answer_under_the_threshold_is_marked_and_still_given(items):
    certain = engine_of("parseq", "attention").read(items)
    threshold = sorted(prediction.confidence for prediction in certain)[7]
    doubtful = engine_of("parseq", "attention", abstain_below=threshold - 1e-6).read(items)
    assert sum(prediction.abstained for prediction in doubtful) == 7
    assert not any(prediction.abstained for prediction in certain)
    assert [prediction.text for prediction in doubtful] == [prediction.text for prediction in certain]
    assert all(prediction.abstained == (prediction.confidence < threshold - 1e-6) for prediction in doubtful)


def test_an_answer_says_how_long_it_took_and_where_its_weights_are_from(items):
    prediction = engine_of("query-digits", "attention").read(items[:2])[0]
    assert set(prediction.timings) == {"decode", "encode", "search"}
    assert all(milliseconds > 0 for milliseconds in prediction.timings.values())
    assert prediction.provenance == {"weights": "random"}
    assert prediction.confidence == pytest.approx(exp(prediction.n_best[0].log_prob))


def test_reading_leaves_the_recognizer_without_gradients_and_out_of_training(items):
    engine = engine_of("query-digits", "attention")
    engine.read(items[:3])
    assert not engine.recognizer.training
    assert all(parameter.grad is None for parameter in engine.recognizer.parameters())


def test_padding_is_marked_as_absent():
    short = FrameStack(np.full((1, 3, 2, 2), 7, np.uint8), np.array([[2, 2]]))
    long = FrameStack(np.full((3, 3, 2, 4), 9, np.uint8), np.array([[2, 4], [1, 4], [2, 3]]))
    frames, mask, sizes = pad_stacks([short, long], padding=5)
    assert frames.shape == (2, 3, 3, 2, 4)
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert frames[0, 0, :, :, :2].mean() == 7 and frames[0, 0, :, :, 2:].mean() == 5
    assert frames[1].mean() == 9
    assert frames[~mask].max() == 5
    assert sizes.tolist() == [[[2, 2], [0, 0], [0, 0]], [[2, 4], [1, 4], [2, 3]]]


def test_many_items_are_read_in_bounded_batches_with_the_same_answers(items):
    engine = engine_of("query-digits", "attention")
    many = [*items, *items] * 60
    sizes = []
    encode = engine.recognizer.encode

    def watched(frames, mask, pictures):
        sizes.append(mask.numel())
        return encode(frames, mask, pictures)

    engine.recognizer.encode = watched
    read = engine.read(many)
    assert len(sizes) > 1 and max(sizes) <= 512
    assert [prediction.text for prediction in read] == [engine.read([item])[0].text for item in many]
