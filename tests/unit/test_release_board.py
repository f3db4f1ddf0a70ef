"""What gateways and the board tell each other of a release, and what each does when the other is gone."""

from __future__ import annotations

import asyncio

from glyphrun_serve.comparison import Comparison
from glyphrun_serve.following import Follower
from glyphrun_serve.models import Lost, Model
from glyphrun_serve.release_board import GONE_S, Board
from glyphrun_serve.release_plan import News, Plan, Table
from glyphrun_serve.traffic import Traffic
from glyphrun_serve.verdict import Bounds
from two_versions import ALL, CANARY, SHADOW, Version, read, seen


def news(gateway: str, table: Table, counts: Comparison | None = None) -> News:
    return News(gateway, table.revision, counts or Comparison(), told=table)


def test_the_board_adds_up_what_gateways_saw_and_gives_a_challenger_up_by_itself() -> None:
    board = Board()
    assert board.exchange(news("a", Table()), 0).plan is None
    table = board.post(CANARY)
    # What was seen before the plan held says nothing of it.
    assert board.exchange(news("a", Table(), seen((0, 0), (0, 50))), 1) == table
    assert board.exchange(news("a", table, seen((10, 0), (0, 2))), 2) == table
    assert board.status(2).seen.challenger.failed == 2
    after = board.exchange(news("b", table, seen((17, 0), (0, 1))), 3)
    status = board.status(3)
    assert status.ended is not None and status.ended.plan == CANARY
    assert after == Table(table.revision + 1, None, status.ended)
    assert status.ended.reason.startswith("it failed on 3 of 3 items, the champion on 0 of 27")
    assert {told.gateway for told in status.gateways} == {"a", "b"}
    assert [told.gateway for told in board.status(2 + GONE_S).gateways] == ["b"]
    # A release that takes everything is not compared.
    table = board.post(ALL)
    assert board.exchange(news("b", table, seen((0, 0), (0, 500))), 4) == table
    assert board.status(4).ended is None


def test_a_board_that_is_started_again_goes_on_with_what_gateways_were_told() -> None:
    strict = Plan(CANARY.application, "2", "canary", 10, Bounds(errors=0.5))
    before = Board()
    before.post(SHADOW)
    told = before.post(strict)
    board = Board()
    # A gateway that is new knows nothing, and one that was slow the last word but one.
    assert board.exchange(News("new", 0, Comparison()), 0) == Table()
    assert board.exchange(news("slow", Table(1, SHADOW)), 0).plan == SHADOW
    assert board.exchange(News("a", 0, Comparison(), told), 1) == told
    assert board.exchange(news("slow", Table(1, SHADOW)), 1) == told
    # It judges by the bounds of the plan, and what it has decided itself is not overruled by what was told before it.
    assert board.exchange(news("a", told, seen((100, 0), (60, 40))), 2) == told
    ended = board.exchange(news("a", told, seen((0, 0), (0, 200))), 3)
    assert (ended.revision, ended.plan) == (told.revision + 1, None)
    assert board.exchange(news("slow", told), 4) == ended
    # Another one knows that it was given up and why, and its own words count for more, though it was told nothing.
    again = Board()
    again.exchange(News("a", 0, Comparison(), ended), 5)
    assert again.status(5).ended == board.status(5).ended is not None
    afresh = Board(start=100)
    assert afresh.post(ALL) == Table(101, ALL)
    assert afresh.exchange(News("a", 0, Comparison(), ended), 5) == Table(101, ALL)


def test_what_was_given_up_meanwhile_does_not_take_the_champions_place() -> None:
    board = Board()
    canary = board.post(CANARY)
    ended = board.exchange(news("a", canary, seen((200, 0), (0, 200))), 0)
    assert ended.plan is None
    assert board.post(ALL, instead_of=CANARY) is None
    assert board.status(0).table == ended
    assert board.post(ALL) == Table(ended.revision + 1, ALL)
    # One that was started again does not know it yet, and is told.
    assert Board().post(ALL, instead_of=CANARY) == Table(1, ALL)


def test_a_gateway_follows_the_board_and_without_its_word_the_champion_alone_reads() -> None:
    async def ask() -> None:
        said: list[Table | None] = []
        told: list[News] = []
        met: list[str] = []

        async def exchange(one: News) -> Table | None:
            told.append(one)
            return said[-1]

        async def meet(plan: Plan) -> list[Model]:
            if plan.application == "gone":
                raise Lost("no such application")
            met.append(plan.application)
            return [Version("2")]

        traffic = Traffic(Version("1"), answer_s=30)
        follower = Follower(traffic, exchange, meet)

        async def look(table: Table | None) -> int:
            said.append(table)
            await follower.look()
            return (await read(traffic, 100))["2"]

        assert await look(None) == 0
        assert await look(Table(1, CANARY)) == 10
        assert await look(Table(2, Plan(CANARY.application, "2", "canary", 50))) == 50
        assert met == [CANARY.application]
        assert await look(Table(3, Plan("gone", "3", "canary", 50))) == 50
        assert told[-1].revision == 2
        # The board is gone: the champion alone, until one asks what was told last.
        assert await look(None) == 0
        assert await look(Table()) == 0
        assert (told[-1].revision, told[-1].told.revision) == (0, 3)
        assert await look(Table(2, CANARY)) == 10
        assert await look(None) == 0
        assert await look(Table(1, ALL)) == 100
        # But not while the champion may be half replaced: then until the board says so.
        assert await look(None) == 100
        assert await look(Table()) == 100
        assert await look(Table(2, None)) == 0
        assert told[-1].seen.challenger.answered == 100

    asyncio.run(ask())
