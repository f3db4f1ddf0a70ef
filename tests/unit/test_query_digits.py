from __future__ import annotations

from itertools import product
from math import log

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.evaluation.cost import count_gflops, count_parameters
from glyphrun.images import ImageProcessor
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.query_digits import QueryDigits, QueryDigitsSettings
from glyphrun.models.recognizer import Memory
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec


def query_digits(fusion: str = "attention", seed: int = 0) -> QueryDigits:
    torch.manual_seed(seed)
    encoder = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)
    model = QueryDigits(QueryDigitsSettings(encoder=encoder, decoder_heads=2, dropout=0.0, fusion=fusion)).eval()
    with torch.no_grad():  # at its first weights a model answers the same whatever it is shown
        model.position_queries.mul_(40)
        model.length_query.mul_(40)
        model.digit_head.weight.mul_(3)
        model.length_head.weight.mul_(3)
    return model


@torch.no_grad()
def memory_of(model: QueryDigits, items: int = 12, frames: int = 3) -> Memory:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(items, frames, 3, 16, 16, generator=generator)
    counts = torch.arange(items) % frames + 1
    return model.encode(pixels, torch.arange(frames) < counts[:, None])


@torch.no_grad()
def distributions(model: QueryDigits, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of length (B, 3), first and second digit (B, 10), all asked at once."""
    queries = torch.cat([model.length_query, model.position_queries], 1).expand(len(memory.tokens), -1, -1)
    mask = None if memory.mask is None else memory.mask[:, None, None, :]
    read = model.reader(queries, model.reader.cross_attn.keys_values(memory.tokens), mask)
    digits = model.digit_head(read[:, 1:]).log_softmax(-1)
    return model.length_head(read[:, 0]).log_softmax(-1), digits[:, 0], digits[:, 1]


def every_reading(lengths: Tensor, first: Tensor, second: Tensor) -> dict[tuple[int, ...], float]:
    """All 111 readings of one item with their log-probabilities."""
    readings = {(): float(lengths[0])}
    readings.update({(digit + 1,): float(lengths[1] + first[digit]) for digit in range(10)})
    for tens, ones in product(range(10), repeat=2):
        readings[(tens + 1, ones + 1)] = float(lengths[2] + first[tens] + second[ones])
    return readings


@pytest.mark.parametrize("fusion", ["none", "attention", "concatenate", "mean"])
@torch.no_grad()
def test_the_ranking_is_that_of_all_111_readings_and_adds_up_to_1(fusion):
    model = query_digits(fusion)
    memory = memory_of(model)
    for item, tables in zip(model.rank(memory, 111), zip(*distributions(model, memory), strict=True), strict=True):
        expected = every_reading(*tables)
        assert len({found.tokens for found in item}) == 111
        assert sum(torch.tensor([found.log_prob for found in item]).exp()).item() == pytest.approx(1, abs=1e-4)
        for found in item:
            assert found.log_prob == pytest.approx(expected[found.tokens], abs=1e-4)
            assert sum(found.token_log_probs) == pytest.approx(found.log_prob, abs=1e-4)
            assert len(found.token_log_probs) == len(found.tokens) + 1
        assert [found.log_prob for found in item] == sorted((found.log_prob for found in item), reverse=True)


@pytest.mark.parametrize("n", [1, 3, 11, 12])
@torch.no_grad()
def test_the_second_digit_is_asked_exactly_where_it_can_matter_and_the_answers_stay_the_same(n):
    model = query_digits()
    memory = memory_of(model, items=40)
    # A length head that leans to two digits for some items and away from them for others.
    lengths, first, _ = distributions(model, memory)
    one_digit = torch.cat([lengths[:, :1], lengths[:, 1:2] + first], dim=1).amax(1)
    model.length_head.bias[2] -= (lengths[:, 2] + first.amax(1) - one_digit).median()
    lengths, first, second = distributions(model, memory)
    best_two = lengths[:, 2] + first.amax(1)
    short = torch.cat([lengths[:, :1], lengths[:, 1:2] + first], dim=1)
    can_matter = best_two > short.topk(n, dim=1).values[:, -1] if n <= 11 else torch.ones(40, dtype=torch.bool)
    asked: list[tuple[int, int]] = []
    with_hook = model.reader.register_forward_hook(lambda _, given, __: asked.append(tuple(given[0].shape[:2])))
    ranked = model.rank(memory, n)
    with_hook.remove()
    assert asked[0] == (40, 2)  # length and first digit
    assert asked[1:] == [(int(can_matter.sum()), 1)] * bool(can_matter.any())
    if n == 1:
        assert 0 < int(can_matter.sum()) < 40
    for item, tables in zip(ranked, zip(lengths, first, second, strict=True), strict=True):
        expected = sorted(every_reading(*tables).values(), reverse=True)[:n]
        assert [found.log_prob for found in item] == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_in_a_batch_read_for_its_best_answer_only_two_digit_items_cost_a_second_query():
    torch.manual_seed(0)
    model = query_digits(seed=2)
    model.digit_head.weight.mul_(1000)  # certain of each digit, so the bound on two-digit readings is tight
    frames, mask = torch.randint(0, 255, (40, 3, 3, 16, 16), dtype=torch.uint8), torch.ones(40, 3, dtype=torch.bool)
    engine = Engine(
        model,
        Codec(DIGITS, 2),
        ImageProcessor(height=16, width=16),
        DecodeSettings(n_best=1),
        device=torch.device("cpu"),
        precision="float32",
    )
    lengths, _, _ = distributions(model, model.encode(engine.processor.normalise(frames), mask))
    model.length_head.bias[2] -= (lengths[:, 2] - lengths[:, :2].amax(1)).median()
    queries: list[int] = []
    model.reader.register_forward_hook(lambda _, given, __: queries.append(given[0].shape[:2].numel()))
    two_digits = sum(len(prediction.text) == 2 for prediction in engine.read_batch(frames, mask))
    assert 10 < two_digits < 30
    assert queries == [2 * 40, two_digits]


@torch.no_grad()
def test_nobody_asks_for_a_second_digit_when_no_item_can_have_one():
    model = query_digits()
    model.length_head.bias[2] -= 50
    calls: list[int] = []
    model.reader.register_forward_hook(lambda *_: calls.append(1))
    assert all(len(item[0].tokens) < 2 for item in model.rank(memory_of(model), 3))
    assert len(calls) == 1


@torch.no_grad()
def test_the_loss_is_the_mean_over_lengths_and_digits():
    model = query_digits()
    memory = memory_of(model, items=4)
    lengths, first, second = distributions(model, memory)
    by_hand = -(
        lengths[0, 2] + first[0, 3] + second[0, 2]  # 32
        + lengths[1, 1] + first[1, 7]  # 7
        + lengths[2, 0]  # nothing readable
        + lengths[3, 2] + first[3, 0] + second[3, 9]  # 09
    ) / 9  # fmt: skip
    targets = Codec(DIGITS, 2).encode_batch(["32", "7", "", "09"])
    assert model.loss(memory, targets).item() == pytest.approx(by_hand.item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("texts", "length"), [(["", "", "", ""], 0), (["3", "3", "3", "3"], 1)])
def test_the_loss_of_a_batch_of_short_labels_needs_no_second_digit(texts, length):
    model = query_digits()
    memory = memory_of(model, items=4)
    lengths, first, _ = distributions(model, memory)
    expected = F.nll_loss(lengths, torch.full((4,), length), reduction="sum")
    if length:
        expected = (expected - first[:, 3].sum()) / 2
    assert model.loss(memory, Codec(DIGITS, 2).encode_batch(texts)).item() == pytest.approx(
        expected.item() / 4, abs=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["attention", "concatenate", "mean"])
def test_padding_with_any_pixels_never_changes_an_answer(fusion):
    model = query_digits(fusion)
    frames = torch.randn(3, 2, 3, 16, 16)
    padded = torch.cat([frames, torch.full((3, 4, 3, 16, 16), 1e3)], dim=1)
    mask = torch.tensor([[True, True] + [False] * 4] * 3)
    plain = model.rank(model.encode(frames, torch.ones(3, 2, dtype=torch.bool)), 5)
    for one, other in zip(plain, model.rank(model.encode(padded, mask), 5), strict=True):
        assert [found.tokens for found in one] == [found.tokens for found in other]
        assert [found.log_prob for found in one] == pytest.approx([found.log_prob for found in other], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["attention", "mean"])
def test_the_order_of_frames_does_not_matter(fusion):
    model = query_digits(fusion)
    frames, mask = torch.randn(2, 6, 3, 16, 16), torch.ones(2, 6, dtype=torch.bool)
    forward = distributions(model, model.encode(frames, mask))
    backward = distributions(model, model.encode(frames[:, [5, 3, 0, 1, 4, 2]], mask))
    for one, other in zip(forward, backward, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_digit_layer_reads_both_places():
    """What tells the places apart is the query alone, so a number never seen is read from digits that were."""
    model = query_digits()
    model.position_queries[:, 1] = model.position_queries[:, 0]
    _, first, second = distributions(model, memory_of(model))
    torch.testing.assert_close(first, second)
    model.digit_head.weight.zero_()
    model.digit_head.bias.zero_()
    _, first, second = distributions(model, memory_of(model))
    torch.testing.assert_close(torch.cat([first, second]), torch.full((24, 10), -log(10)))


def test_the_published_size_has_the_parameters_and_multiply_adds_of_its_table():
    """5.5 to 7 M parameters and 0.8 to 1.4 G a sequence, here eight crops; the table counts multiply-adds, as the papers
    on the other recognizers in it do (PARSeq-Small: 23.8 M and 3.26 G, of which 2.87 G in the encoder)."""
    encoder = EncoderSettings(image=(40, 40), patch=(8, 8), stem="convolution", width=192, depth=12, heads=3)
    settings = QueryDigitsSettings(encoder=encoder, decoder_heads=6)
    engine = Engine(
        QueryDigits(settings),
        Codec(DIGITS, 2),
        processor_for(settings),
        device=torch.device("cpu"),
        precision="float32",
    )
    assert count_parameters(engine) == 6_142_430
    multiply_adds = count_gflops(engine, frames=8) / 2
    assert 1.29 < multiply_adds < 1.31
