"""Batches are timed on the path that a served request goes, by the clock that is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from glyphrun.bundle import load_engine
from glyphrun.engine import Engine
from glyphrun_serve.batch_curve import measure_curve
from glyphrun_serve.tuning import Curve, TuningError
from serving import picture
from tiny_bundles import save_tiny_bundle

TICK = 1.0  # ms that every look at the clock takes, so that decoding takes as long
FRAMES = [picture(seed) for seed in (2, 3)]


class Clock:
    """A clock that goes on by what batches are said to take, and a little at every look."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        self.ms += TICK
        return self.ms / 1e3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle") / "one", "query-digits-nano", vote_floor=0.0)


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return load_engine(bundle, precision="float32")


def measured(
    engine: Engine, takes_ms: Callable[[int, int], float], sizes: list[int], slo_ms: float = 1000, **how: Any
) -> tuple[Curve, list[int], list[int]]:
    """The curve, the sizes of the batches that were read, and those that were told to be done.

    takes_ms: what the n-th batch of some items takes.
    """
    clock, read, done = Clock(), partial(Engine.read_prepared, engine), []
    batches: list[int] = []

    def timed(items: Any, **asked: Any) -> Any:
        batches.append(len(items))
        clock.ms += takes_ms(len(items), len(batches))
        return read(items, **asked)

    engine.read_prepared = timed  # type: ignore[method-assign]
    how = {"repeats": 20, "seconds": 1e6, **how}
    found = measure_curve(engine, engine.processors, [FRAMES], sizes, slo_ms, clock=clock, advance=done.append, **how)
    return asyncio.run(found), batches, done


def test_every_size_is_read_at_once_and_as_often_as_asked_after_two_batches_that_do_not_count(engine: Engine) -> None:
    slow = {1, 2, 23, 24}  # the first two of a size: 20 repeats follow
    curve, batches, done = measured(engine, lambda items, n: 900.0 if n in slow else 3.0 * items, [1, 2])
    assert batches == [1] * 22 + [2] * 22 and done == [1, 2]
    one, two = curve.points
    assert (one.batch, one.repeats) == (1, 20) and (two.batch, two.repeats) == (2, 20)
    assert (one.decode_ms, one.read_ms, one.read_p99_ms) == pytest.approx((TICK, 3 + TICK, 3 + TICK))
    assert (two.read_ms, two.answer_ms, two.answer_p99_ms) == pytest.approx((6 + TICK, 6 + 2 * TICK, 6 + 2 * TICK))
    assert curve.item_bytes == len(FRAMES) * 3 * engine.processor.height * engine.processor.width
    assert curve.ended == ""


@pytest.mark.parametrize(("repeats", "counts"), [(99, 50.0), (100, 3.0)])
def test_of_fewer_than_a_hundred_batches_the_longest_counts(engine: Engine, repeats: int, counts: float) -> None:
    (point,) = measured(engine, lambda items, n: 50.0 if n == 10 else 3.0, [1], repeats=repeats)[0].points
    assert point.read_ms == pytest.approx(3 + TICK) and point.read_p99_ms == pytest.approx(counts + TICK)


def test_some_seconds_end_a_size_when_one_in_ten_repeats_was_measured(engine: Engine) -> None:
    (point,) = measured(engine, lambda items, n: 600.0, [1], seconds=1.0)[0].points
    assert point.repeats == 2


def test_no_larger_batches_are_measured_after_one_that_is_over_the_promise_by_itself(engine: Engine) -> None:
    curve, batches, _ = measured(engine, lambda items, n: 40.0 * items, [1, 2, 4, 8], slo_ms=100, repeats=2)
    assert [point.batch for point in curve.points] == [1, 2, 4] and max(batches) == 4
    assert curve.ended == "half the batches of 4 take longer than 100 ms"


def test_a_batch_that_cannot_be_read_at_once_ends_the_curve_and_an_item_that_cannot_be_read_is_told(
    engine: Engine,
) -> None:
    def breaks_above(most: int) -> Callable[[int, int], float]:
        def takes(items: int, n: int) -> float:
            if items > most:
                raise RuntimeError("out of tune")
            return 3.0

        return takes

    curve, batches, _ = measured(engine, breaks_above(2), [1, 2, 4, 8], repeats=1)
    assert [point.batch for point in curve.points] == [1, 2] and max(batches) == 4
    assert curve.ended.startswith("batches of 4 cannot be read at once: they were read 2 at a time")
    with pytest.raises(TuningError, match="not even one item can be read: RuntimeError: out of tune"):
        measured(engine, breaks_above(0), [1, 2])
    with pytest.raises(TuningError, match="an item.* readable"):
        asyncio.run(measure_curve(engine, engine.processors, [[b"text"]], [1], 100.0))
