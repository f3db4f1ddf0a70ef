"""What a Serve config says follows from the curve of batches by the stated rules, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from glyphrun_serve.tuning import BatchPoint, Bounds, Curve, Tuning, TuningError, sizes_up_to, tune

ITEM_BYTES = 38_400


def curve(read_ms: Mapping[int, float], *, decode_ms: float = 0.5, tail: float = 1.0, item_bytes: int = 1) -> Curve:
    """Median times of batches by size, with percentiles that are ``tail`` times as long, and items decoded in turn."""
    return Curve(
        item_bytes=item_bytes,
        points=tuple(
            BatchPoint(
                batch=batch,
                repeats=100,
                decode_ms=decode_ms * batch,
                read_ms=read,
                read_p99_ms=tail * read,
                answer_ms=read + decode_ms * batch,
                answer_p99_ms=tail * (read + decode_ms * batch),
            )
            for batch, read in read_ms.items()
        ),
    )


def tuned(
    read_ms: Mapping[int, float],
    slo_ms: float,
    *,
    replicas: tuple[int, int] = (1, 4),
    gateways: int = 1,
    peak: float | None = None,
    answer_s: float = 30,
    tail: float = 1.0,
    item_bytes: int = 1,
) -> Tuning:
    bounds = Bounds(answer_s, {"recognizer": replicas}, gateways)
    return tune({"recognizer": curve(read_ms, tail=tail, item_bytes=item_bytes)}, slo_ms, bounds, peak)


CARD = {1: 10.0, 2: 10.5, 4: 11.0, 8: 13.0, 16: 19.0, 32: 36.0}  # half a batch of 16 takes nearly as long as the whole
CORE = {1: 10.0, 2: 19.0, 4: 37.0, 8: 75.0}  # every item takes as long as it takes alone


def test_sizes_are_doubled_up_to_the_bound() -> None:
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(16) == [1, 2, 4, 8, 16]
    assert sizes_up_to(48) == [1, 2, 4, 8, 16, 32]


def test_an_item_that_has_just_missed_a_batch_is_still_answered_in_time() -> None:
    # 16: 19 ms for the batch before, 8 ms of decoding, 19 ms of reading.
    assert tuned(CARD, 46.0).most == 16
    assert tuned(CARD, 45.9).most == 8
    # 1: 10 ms for the one before, half a millisecond of decoding, 10 ms of reading.
    assert tuned(CARD, 20.5).most == 1
    assert tuned(CARD, 60.0, tail=2.0).most == 8, "what counts is the 99th percentile, not the median"


def test_a_larger_batch_that_reads_no_more_items_a_second_is_not_waited_for() -> None:
    # 842 items/s at 16, 889 at 32, less than 95 % of which is nowhere but below 16.
    assert tuned(CARD, 1000.0).most == 32
    assert tuned({**CARD, 32: 37.0}, 1000.0).most == 16
    assert tuned(CORE, 1000.0).most == 2


def test_a_promise_that_no_size_keeps_is_refused_with_the_best_that_was_measured() -> None:
    with pytest.raises(TuningError) as refused:
        tuned(CARD, 20.4)
    said = str(refused.value)
    assert "no batch size answers 99 % of items within 20.4 ms: the best that was measured is 20.5 ms" in said
    assert "with batches of 1 at recognizer, 10.5 ms from frames to text after 10.0 ms for the batch before" in said
    assert "--slo-ms" in said and "glyphrun quantize" in said
    with pytest.raises(TuningError, match="cut off after 0.2 s, so 200 ms cannot be promised.*limits.answer_s"):
        tuned(CARD, 200, answer_s=0.2)


def test_a_size_beyond_one_that_is_too_slow_was_lucky() -> None:
    assert tuned({1: 10.0, 2: 30.0, 4: 12.0}, 40.0).most == 1
    with pytest.raises(TuningError, match="the best that was measured is 60.5 ms, with batches of 1"):
        tuned({1: 30.0, 2: 10.0}, 40.0)


def test_a_tighter_promise_never_gives_larger_batches_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    chosen = 0
    for _ in range(200):
        steps = rng.uniform(0.8, 2.2, 7)  # now and then a larger batch is measured to be faster
        made = {1 << power: float(10 * np.prod(steps[:power])) for power in range(7)}
        sizes = []
        for slo_ms in (1000, 500, 300, 200, 120, 80, 50, 30, 22):
            try:
                found = tuned(made, slo_ms)
            except TuningError:
                sizes.append(0)
                continue
            assert found.worst_ms + 1e3 * found.wait_s <= slo_ms
            sizes.append(found.most)
        assert sizes == sorted(sizes, reverse=True), made
        chosen += len(set(sizes)) > 2
    assert chosen > 100, "most curves must have had a choice"


def test_waiting_for_others_is_for_batches_that_take_hardly_longer_than_an_item() -> None:
    # A lone client's answer takes 10.5 ms, a tenth of which is rounded down to 1 ms.
    assert tuned(CARD, 60.0).most == 16 and tuned(CARD, 60.0).wait_s == 0.001
    assert tuned(CARD, 46.25).wait_s == 0.0002, "no more than what the promise leaves"
    assert tuned(CARD, 46.0).wait_s == 0
    assert tuned(CARD, 1000.0).most == 32 and tuned(CARD, 1000.0).wait_s == 0, "32 take more than twice as long as 1"
    assert tuned({1: 10.0}, 1000.0).wait_s == 0, "nobody else can come into a batch of one"


def test_a_replica_has_a_batch_that_is_read_and_one_that_fills() -> None:
    one = tuned(CARD, 46.0).recognizers["recognizer"]
    assert (one.max_ongoing_requests, one.target_ongoing_requests) == (32, 16)
    assert one.items_per_s == pytest.approx(16 / 0.019)


def test_what_is_queued_is_answered_before_it_is_cut_off() -> None:
    # One replica reads 16 in 19 ms: in 10 s less the promise 8382.3 of them.
    one = tuned(CARD, 46.0, answer_s=10).recognizers["recognizer"]
    assert one.max_queued_requests == 8382
    assert one.max_queued_requests / one.items_per_s + 0.046 <= 10
    assert tuned(CARD, 46.0, answer_s=10, replicas=(2, 4)).recognizers["recognizer"].max_queued_requests == 16764
    assert tuned(CARD, 46.0, answer_s=10, gateways=4).recognizers["recognizer"].max_queued_requests == 2095
    # Tails count: batches of 2 that take up to 21 ms, in 10 s less 46 ms.
    assert tuned(CARD, 46.0, answer_s=10, tail=2).recognizers["recognizer"].max_queued_requests == 948
    # 256 MiB of prepared items.
    one = tuned(CARD, 46.0, item_bytes=ITEM_BYTES).recognizers["recognizer"]
    assert one.max_queued_requests == 268_435_456 // ITEM_BYTES
    assert tuned(CARD, 46.0, answer_s=0.047, gateways=8).recognizers["recognizer"].max_queued_requests == 1


def test_replicas_are_those_that_are_given_or_as_many_as_read_the_peak() -> None:
    def many(**given: object) -> tuple[int, int]:
        one = tuned(CARD, 46.0, **given).recognizers["recognizer"]  # type: ignore[arg-type]
        return one.min_replicas, one.max_replicas

    assert many(replicas=(1, 4)) == (1, 4)
    # A replica reads 842 items/s, and 589 where seven tenths of its time are to suffice.
    assert many(peak=589) == (1, 1)
    assert many(peak=590) == (1, 2)
    assert many(peak=5900, replicas=(2, 4)) == (2, 11)
    assert many(peak=10, replicas=(2, 4)) == (2, 2)
    assert many(peak=0, replicas=(0, 4)) == (0, 1)


def test_of_members_that_vote_the_slowest_decides_the_batch_and_each_has_its_own_replicas() -> None:
    curves = {"recognizer-one": curve(CARD), "recognizer-two": curve({size: 2 * CARD[size] for size in (1, 2, 4, 8)})}
    bounds = Bounds(10, {"recognizer-one": (1, 2), "recognizer-two": (2, 8)})
    found = tune(curves, 60.0, bounds, peak=1000)
    assert found.most == 8
    one, two = found.recognizers["recognizer-one"], found.recognizers["recognizer-two"]
    assert one.items_per_s == pytest.approx(2 * two.items_per_s)
    assert (one.min_replicas, one.max_replicas) == (1, 3) and (two.min_replicas, two.max_replicas) == (2, 5)
    assert one.max_queued_requests == pytest.approx(two.max_queued_requests, abs=1)
    with pytest.raises(TuningError, match="40.5 ms, with batches of 1 at recognizer-two"):
        tune(curves, 40.0, bounds)


def test_every_value_is_told_with_where_it_comes_from() -> None:
    said = "\n".join(tuned(CARD, 46.0).told())
    assert "batches of 16: 99 % of items are answered within 46.0 ms of 46 ms" in said
    assert "batch wait 0 ms: what comes while a batch is read is the next one" in said
    assert "842 items/s a replica; 1 to 4 replicas, one more above 16 ongoing requests each, at most 32;" in said
