from __future__ import annotations

from math import factorial

import pytest
import torch

from glyphrun.models.permutations import order_masks, sample_orders


@pytest.mark.parametrize("characters", range(2, 9))
def test_orders_are_permutations_that_begin_first_and_come_in_mirrored_pairs(characters):
    torch.manual_seed(0)
    orders = sample_orders(characters, 6)
    assert len(orders) == min(6, factorial(characters))
    assert all(sorted(order) == list(range(characters + 2)) for order in orders.tolist())
    assert orders[:, 0].eq(0).all()
    assert orders[0].tolist() == list(range(characters + 2))
    for one, other in zip(orders[2::2], orders[3::2], strict=True):
        assert one[1:-1].flip(0).tolist() == other[1:-1].tolist()
        assert one[-1] == other[-1] == characters + 1


def test_the_second_order_predicts_end_first_and_then_backwards():
    assert sample_orders(3, 6)[1].tolist() == [0, 4, 3, 2, 1]
    content, query = order_masks(sample_orders(3, 6)[1])
    assert query[-1].tolist() == [True, False, False, False]  # end sees begin alone, as a parallel decoder does
    assert query[0].tolist() == [True, False, True, True]  # the first character sees all the others
    assert content[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize("characters", [2, 3, 4])
def test_orders_of_short_labels_never_repeat_and_can_be_complete(characters):
    everything = factorial(characters)
    for seed in range(10):
        torch.manual_seed(seed)
        for count in (2, 4, 6, everything):
            orders = {tuple(order) for order in sample_orders(characters, count).tolist()}
            assert len(orders) == min(count, everything)


@pytest.mark.parametrize(("characters", "count"), [(0, 6), (1, 6), (2, 6), (3, 1), (3, 3), (5, 1), (5, 5), (7, 12)])
def test_never_more_orders_than_asked_for(characters, count):
    orders = sample_orders(characters, count)
    assert 1 <= len(orders) <= count
    assert orders[0].tolist() == list(range(characters + 2))


def test_the_first_order_is_causal():
    content, query = order_masks(torch.arange(5))
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    assert torch.equal(content, causal)
    assert torch.equal(query, causal)  # row i predicts position i + 1 from the i + 1 tokens before it


@pytest.mark.parametrize("characters", range(0, 7))
def test_no_position_sees_itself_or_what_its_order_predicts_later(characters):
    torch.manual_seed(characters)
    for order in sample_orders(characters, 12):
        _, query = order_masks(order)
        rank = {position: place for place, position in enumerate(order.tolist())}
        for row, seen in enumerate(query.tolist()):
            assert [column for column, is_seen in enumerate(seen) if is_seen] == [
                column for column in range(len(seen)) if rank[column] < rank[row + 1]
            ]


def test_orders_follow_the_global_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample_orders(8, 12).tolist())
    assert draws[0] == draws[1] != draws[2]
