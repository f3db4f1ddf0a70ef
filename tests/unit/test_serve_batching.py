"""What waits is read together, and what a poisoned item costs those that it is read with."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glyphrun.bundle import load_engine
from glyphrun_serve.batching import Batcher, Batching
from glyphrun_serve.models import Failed, Unreadable
from glyphrun_serve.preprocess import Preprocess
from glyphrun_serve.reading import QueuedReader
from serving import picture
from tiny_bundles import save_tiny_bundle


def test_items_that_come_while_a_batch_is_read_are_read_together_and_a_poisoned_one_fails_alone():
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def read(items: list[int]) -> list[int]:
        batches.append(items)
        begun.set()
        assert go_on.wait(10)
        if 5 in items:
            raise ValueError("poison")
        return [10 * item for item in items]

    async def story() -> list[int | BaseException]:
        batcher = Batcher(read, Batching(most=8))
        first = asyncio.create_task(batcher(0))
        await asyncio.to_thread(begun.wait)
        others = [asyncio.create_task(batcher(item)) for item in range(1, 12)]
        await asyncio.sleep(0.01)
        others[1].cancel()  # nobody waits for item 2 any more
        go_on.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    found = asyncio.run(story())
    assert isinstance(found[2], asyncio.CancelledError)
    assert isinstance(found[5], ValueError)
    assert [found[item] for item in (0, 1, 3, 4, 6, 7, 8, 9, 10, 11)] == [0, 10, 30, 40, 60, 70, 80, 90, 100, 110]
    assert batches == [[0], [1, 3, 4, 5, 6, 7, 8, 9], [1, 3, 4, 5], [1, 3], [4, 5], [4], [5], [6, 7, 8, 9], [10, 11]]


def test_an_item_waits_for_others_no_longer_than_it_is_told_to_and_a_full_batch_for_nothing():
    async def story(items: int, **batching: float) -> list[list[int]]:
        batches: list[list[int]] = []
        batcher = Batcher(lambda batch: batches.append(batch) or batch, Batching(most=3, **batching))
        await asyncio.gather(*(batcher(item) for item in range(items)))
        return batches

    assert asyncio.run(story(2, wait_s=0.05)) == [[0, 1]]
    assert asyncio.run(story(6, wait_s=60)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_items_of_different_kinds_are_never_read_together_and_none_waits_for_a_kind_that_is_asked_for_more(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    most, kinds, pause = int(rng.integers(1, 6)), int(rng.integers(1, 5)), float(rng.choice([0.0, 0.2]))
    # One kind is asked for as often as all others together.
    came = [(0 if rng.random() < 0.5 else int(rng.integers(kinds)), number) for number in range(60)]
    batches: list[list[tuple[int, int]]] = []

    async def story() -> list[tuple[int, int]]:
        batcher = Batcher(lambda items: batches.append(items) or items, Batching(most=most), kind=lambda item: item[0])
        asked = []
        for item in came:
            asked.append(asyncio.create_task(batcher(item)))
            if rng.random() < pause:
                await asyncio.sleep(0.001)
        return await asyncio.gather(*asked)

    assert asyncio.run(story()) == came
    left = list(came)
    for batch in batches:
        assert batch[0] == left[0], "whatever has waited longest is read next"
        alike = [item for item in left if item[0] == left[0][0]][:most]
        assert batch == alike[: len(batch)], "and with it the next of its kind alone"
        assert pause or batch == alike, "as many of them as wait"
        left = [item for item in left if item not in batch]
    assert left == []


def test_an_item_that_a_batch_of_another_kind_passed_over_waits_for_no_others() -> None:
    async def story() -> list[list[str]]:
        batches: list[list[str]] = []
        batching = Batching(most=5, wait_s=30)
        batcher = Batcher(lambda items: batches.append(items) or items, batching, kind=lambda item: item[0])
        await asyncio.wait_for(asyncio.gather(*map(batcher, ("a1", "b1", "c1", "a2", "b2"))), 20)
        return batches

    assert asyncio.run(story()) == [["a1", "a2"], ["b1", "b2"], ["c1"]]


def test_a_poisoned_item_fails_alone_and_a_reader_that_reads_nothing_any_more_is_ill(tmp_path: Path) -> None:
    engine = load_engine(save_tiny_bundle(tmp_path / "one", "query-digits-nano", vote_floor=0.0), precision="float32")
    preprocess, read, poison = Preprocess(engine.processors), engine.read_prepared, {3}

    def poisoned(items: list[Any], **how: Any) -> Any:
        if poison.intersection(len(item.pixels) for item in items):
            raise RuntimeError("out of tune")
        return read(items, **how)

    engine.read_prepared = poisoned  # type: ignore[method-assign]
    frames = [picture(seed) for seed in (2, 3, 4)]

    async def ask() -> list[Any]:
        reader = QueuedReader(engine, Batching(most=8, wait_s=0.05))
        reader.warm_up()
        items = [await preprocess.prepare(chosen, "x") for chosen in (frames[:1], frames[:2], frames, [b"text"])]
        found = await asyncio.gather(*(reader.recognize(item, explain) for item in items for explain in (True, False)))
        await reader.check()
        poison.add(1)
        assert await reader.recognize(items[0], False) == Failed("RuntimeError: out of tune")
        with pytest.raises(RuntimeError, match="out of tune"):
            await reader.check()
        return found

    *found, damaged, damaged_too = asyncio.run(ask())
    assert damaged == damaged_too and isinstance(damaged, Unreadable)
    assert found[4:] == [Failed("RuntimeError: out of tune")] * 2
    wanted = read([engine.prepare(frames[:1], name="x"), engine.prepare(frames[:2], name="x")], explain=True)
    for place, (one, other) in enumerate(zip(found[0:4:2], found[1:4:2], strict=True)):
        assert one.text == other.text == wanted[place].text
        assert one.confidence == pytest.approx(wanted[place].confidence, abs=1e-4)
        assert (len(one.votes), len(other.votes)) == (place + 1, 0)
        assert {"decode", "wait", "encode", "search"} <= set(one.timings)
