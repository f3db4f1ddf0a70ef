"""Who is waited for when members of an ensemble are asked side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

import pytest

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Hypothesis
from glyphrun.members import EnsembleError, EnsembleSettings, Reading, vote_of_members
from glyphrun.prediction import Prediction
from glyphrun_serve.models import Failed, Unreadable
from glyphrun_serve.panel import GRACE_S, LATE, LOST, Panel
from glyphrun_serve.schemas import ModelIdentity, answer

NAMES = ("one", "two", "three")
Member = Callable[[], Awaitable[Prediction | Failed | Unreadable]]


def says(text: str, after_s: float = 0.0) -> Member:
    async def member() -> Prediction:
        await asyncio.sleep(after_s)
        return Prediction(text, 0.9, (Hypothesis(text, -0.1, (-0.1,)),), (), False)

    return member


async def hangs() -> Prediction:
    await asyncio.sleep(60)
    raise AssertionError("it is never waited for that long")


async def breaks() -> Prediction:
    raise RuntimeError("out of tune")


async def refuses() -> Failed:
    return Failed("ValueError: no such shape")


async def finds_it_damaged() -> Unreadable:
    return Unreadable("The image is damaged.")


def panel(patience_s: float = 5.0, **settings: object) -> Panel:
    return Panel(NAMES, EnsembleSettings.model_validate({"vote": "majority", **settings}), patience_s)


async def ask(heard: Panel, **members: Member) -> dict[str, Reading]:
    asked = {**dict.fromkeys(NAMES, says("7")), **members}
    found = await heard.readings(lambda name: asked[name]())
    assert isinstance(found, dict)
    return found


def statuses(readings: dict[str, Reading]) -> list[str]:
    return [readings[name].status for name in NAMES]


def test_all_members_are_heard_in_their_order_with_the_time_that_each_took():
    readings = asyncio.run(ask(panel(), one=says("7", 0.05)))
    assert list(readings) == list(NAMES)
    assert statuses(readings) == ["voted"] * 3
    assert readings["one"].ms > readings["two"].ms > 0


def test_an_answer_without_a_late_and_a_broken_member_is_degraded_and_names_them():
    heard = panel(deadline_ms={"two": 20})
    readings = asyncio.run(ask(heard, two=hangs, three=breaks))
    assert statuses(readings) == ["voted", LATE, "failed: out of tune"]
    (prediction,) = vote_of_members(readings, EnsembleSettings(vote="majority"), DecodeSettings(vote_floor=0.0))
    told = answer(prediction, ModelIdentity(name="n", version="1"), 1.0)
    assert (told.text, told.degraded) == ("7", True)
    assert [(member.member, member.text, member.status) for member in told.members] == [
        ("one", "7", "voted"),
        ("two", "", LATE),
        ("three", "", "failed: out of tune"),
    ]
    (whole,) = vote_of_members(asyncio.run(ask(panel())), EnsembleSettings(), DecodeSettings(vote_floor=0.0))
    assert not answer(whole, ModelIdentity(name="n", version="1"), 1.0).degraded


def test_deadlines_hold_even_where_they_leave_too_few():
    readings = asyncio.run(ask(panel(deadline_ms={"one": 20, "two": 20}, quorum=2), one=hangs, two=hangs))
    with pytest.raises(EnsembleError, match="1 of the 2 members that must answer did: one late; two late"):
        vote_of_members(readings, EnsembleSettings(quorum=2), DecodeSettings())


def test_a_member_without_a_deadline_is_waited_for_until_there_is_a_quorum():
    readings = asyncio.run(ask(panel(patience_s=0.02, quorum=2), one=hangs, two=says("7", 0.2)))
    assert statuses(readings) == [LOST, "voted", "voted"]


def test_what_one_member_cannot_read_at_all_is_left_to_the_others_and_a_damaged_item_to_nobody():
    assert statuses(asyncio.run(ask(panel(), one=refuses))) == [
        "failed: ValueError: no such shape",
        "voted",
        "voted",
    ]

    async def damaged() -> object:
        asked = {"one": hangs, "two": finds_it_damaged, "three": hangs}
        return await panel().readings(lambda name: asked[name]())

    assert asyncio.run(damaged()) == Unreadable("The image is damaged.")


def test_a_lost_member_delays_nobody_until_it_answers_again():
    async def story() -> None:
        heard, back = panel(patience_s=0.05), asyncio.Event()
        questions = 0

        async def away() -> Prediction:
            nonlocal questions
            questions += 1
            await back.wait()
            return await says("7")()

        assert statuses(await ask(heard, one=away)) == [LOST, "voted", "voted"]
        for _ in range(5):
            assert statuses(await ask(heard, one=away)) == [LOST, "voted", "voted"]
        assert questions == 1, "one item is left with it, and nobody else waits"
        back.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert statuses(await ask(heard, one=away)) == ["voted"] * 3

    asyncio.run(story())


def test_after_the_death_of_a_replica_the_others_have_a_moment_and_the_answer_waits_no_longer():
    async def story() -> None:
        heard = panel(patience_s=60)

        async def dies_and_comes_back() -> Prediction:
            heard.died("one")
            return await says("7", 0.1)()

        assert statuses(await ask(heard, one=dies_and_comes_back)) == ["voted"] * 3

        async def dies() -> Prediction:
            heard.died("one")
            return await hangs()

        started = perf_counter()
        assert statuses(await ask(heard, one=dies)) == [LOST, "voted", "voted"]
        assert perf_counter() - started >= GRACE_S

    asyncio.run(story())


def test_a_member_that_a_quorum_needs_is_asked_even_if_it_is_lost():
    async def story() -> None:
        heard = panel(patience_s=0.02, quorum=2)
        back = asyncio.Event()

        async def away() -> Prediction:
            await back.wait()
            return await says("7")()

        assert statuses(await ask(heard, one=away)) == [LOST, "voted", "voted"]
        asyncio.get_running_loop().call_later(0.1, back.set)
        assert statuses(await ask(heard, one=away, two=breaks)) == ["voted", "failed: out of tune", "voted"]

    asyncio.run(story())
