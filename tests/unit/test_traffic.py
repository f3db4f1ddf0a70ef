"""A release under way: who reads an item, what is seen of it, and when the challenger is given up."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glyphrun.decoding.vote import Hypothesis
from glyphrun.prediction import Prediction
from glyphrun_serve.announced import Announcement, SeveralServers, server_of, servers
from glyphrun_serve.comparison import Comparison, Tally
from glyphrun_serve.following import Follower
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Failed, Lost, Model, ReadBy, Unanswered, Unreadable
from glyphrun_serve.release_board import GONE_S, Board
from glyphrun_serve.release_plan import News, Plan, Table
from glyphrun_serve.routes import http_app
from glyphrun_serve.schemas import ColdStart
from glyphrun_serve.traffic import SHADOWS, Portions, Traffic
from glyphrun_serve.verdict import Bounds, fault_of
from local_app import CARD, Alone
from serving import picture, upload

CANARY = Plan("glyphrun-untrained-2", "2", "canary", 10)
SHADOW = Plan("glyphrun-untrained-2", "2", "shadow")
ALL = Plan("glyphrun-untrained-2", "2", "all")


class Version(Alone):
    """A model that reads its own text in everything, or fails as it is told to."""

    def __init__(self, version: str, text: str = "7", problem: Exception | Failed | Unanswered | None = None) -> None:
        self.card = CARD.model_copy(update={"version": version})
        self.text, self.problem = text, problem
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def read(
        self, frames: Sequence[bytes], *, name: str, explain: bool
    ) -> Prediction | Unreadable | Failed | Unanswered:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.problem, Exception):
            raise self.problem
        if self.problem is not None:
            return self.problem
        return Prediction(self.text, 0.8, (Hypothesis(self.text, -0.2, (-0.1,)),), (), abstained=False)

    async def ready(self) -> dict[str, ColdStart]:
        return {}


async def read(model: Model, count: int) -> Counter[str]:
    """How often each version answered; what is no reading stands as its type."""
    said = [await model.read([b""], name="The image", explain=False) for _ in range(count)]
    return Counter(found.card.version if isinstance(found, ReadBy) else type(found).__name__ for found in said)


def seen(
    champion: tuple[int, int] = (0, 0), challenger: tuple[int, int] = (0, 0), ms: tuple[float, float] = (20, 20)
) -> Comparison:
    """(answered, failed) of each, all answers of a release after the same time."""
    found = Comparison()
    for tally, (answered, failed), took in zip(
        (found.champion, found.challenger), (champion, challenger), ms, strict=True
    ):
        for _ in range(answered):
            tally.read(Prediction("7", 0.5, (), (), abstained=True), took)
        for _ in range(failed):
            tally.fail("RuntimeError: out of tune")
    return found


def test_percentiles_are_right_to_a_twentieth_and_add_up_over_processes() -> None:
    one, other, both = Tally(), Tally(), Tally()
    for ms in range(1, 1001):
        (one if ms % 2 else other).read(Prediction("7", 0.5, (), (), abstained=ms % 4 == 0), ms)
    both.add(one)
    both.add(other)
    assert both.percentile(50) == pytest.approx(500, rel=0.05) and both.percentile(95) == pytest.approx(950, rel=0.05)
    assert (both.answered, both.abstained, both.mean_confidence) == (1000, 250, 0.5)
    assert both.slower_than(950) == pytest.approx(50, abs=48)
    assert Tally().percentile(95) is None and Tally().mean_confidence is None


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        # Failures that are no luck end it at once, long before there are answers enough to speak of latency.
        (seen((27, 0), (0, 3)), "it failed on 3 of 3 items, the champion on 0 of 27 (last: RuntimeError: out of tune)"),
        (seen((900, 0), (90, 10)), "it failed on 10 of 100 items"),
        # One failure in a hundred may be luck, and a champion that fails as often is no better.
        (seen((900, 0), (99, 1)), None),
        (seen((500, 500), (50, 50)), None),
        (seen((0, 0), (0, 50)), None),
        # 50 answers of each: 150 ms are too many beside 20 ms, not beside 120 ms, and 90 ms are within the bound.
        (seen((50, 0), (50, 0), (20, 150)), "its 95th percentile is 15"),
        (seen((50, 0), (49, 0), (20, 150)), None),
        (seen((50, 0), (50, 0), (120, 150)), None),
        (seen((50, 0), (50, 0), (20, 90)), None),
        (seen((50, 0), (50, 0), (120, 200)), "and may be 18"),
    ],
)
def test_a_challenger_is_given_up_for_what_is_not_luck(counts: Comparison, words: str | None) -> None:
    fault = fault_of(counts, Bounds())
    assert fault == words if words is None else words in (fault or "")


def test_a_few_slow_answers_are_luck() -> None:
    counts = seen((1000, 0), (96, 0))
    for _ in range(4):
        counts.challenger.read(Prediction("7", 0.5, (), (), abstained=False), 900)
    assert fault_of(counts, Bounds()) is None
    for _ in range(12):
        counts.challenger.read(Prediction("7", 0.5, (), (), abstained=False), 900)
    assert "its 95th percentile is 9" in (fault_of(counts, Bounds()) or "")


@pytest.mark.parametrize("percent", [10, 25, 0.5, 99])
def test_a_share_is_exact_and_even(percent: float) -> None:
    portions = Portions(percent)
    due = [portions.due() for _ in range(1000)]
    assert sum(due) == round(10 * percent)
    hundreds = [sum(due[start : start + 100]) for start in range(0, 1000, 100)]
    assert max(hundreds) - min(hundreds) <= 1


def test_a_canary_reads_its_share_and_only_who_asks_for_a_version_has_a_say() -> None:
    champion, challenger = Version("1"), Version("2", "8")
    traffic = Traffic(champion, answer_s=30)
    assert [card.role for card in traffic.cards()] == [None]
    traffic.follow(CANARY, challenger)
    assert asyncio.run(read(traffic.choose(None), 100)) == {"1": 90, "2": 10}
    assert asyncio.run(read(traffic.choose("untrained"), 100)) == {"1": 90, "2": 10}
    assert [(card.version, card.role) for card in traffic.cards()] == [("1", "champion"), ("2", "challenger")]
    before = champion.asked, challenger.asked
    for version, model in (("1", champion), ("2", challenger)):
        assert traffic.choose(f"untrained@{version}").card.version == version
        assert (
            asyncio.run(traffic.choose(f"untrained@{version}").read([b""], name="", explain=False)).text == model.text
        )
    assert (champion.asked, challenger.asked) == (before[0] + 1, before[1] + 1)
    counts = traffic.take_seen()
    assert (counts.champion.answered, counts.challenger.answered) == (180, 20)
    assert traffic.take_seen().champion.answered == 0


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Failed("RuntimeError: out of tune"), "RuntimeError: out of tune"),
        (Unanswered("too few"), "too few"),
        (Lost("its replicas died"), "its replicas died"),
        (KeyError("weights"), "'weights'"),
    ],
)
def test_whatever_is_wrong_with_a_canary_its_champion_answers(problem: Exception | Failed, reason: str) -> None:
    traffic = Traffic(Version("1"), answer_s=30)
    traffic.follow(CANARY, Version("2", problem=problem))
    assert asyncio.run(read(traffic, 100)) == {"1": 100}
    counts = traffic.take_seen()
    assert (counts.challenger.failed, counts.challenger.reason, counts.champion.failed) == (10, reason, 0)
    assert traffic.outcomes["challenger", "2", "failed"] == 10


def test_a_canary_that_hangs_has_half_of_the_time_and_a_failing_champion_is_counted_too() -> None:
    async def ask() -> None:
        challenger = Version("2")
        challenger.gate = asyncio.Event()
        traffic = Traffic(Version("1"), answer_s=0.1)
        traffic.follow(CANARY, challenger)
        assert await read(traffic, 10) == {"1": 10}
        assert traffic.take_seen().challenger.reason == "no answer within 0.05 s"
        traffic = Traffic(Version("1", problem=Failed("no memory")), answer_s=0.1)
        traffic.follow(SHADOW, Version("2"))
        assert await read(traffic, 3) == {"Failed": 3}
        assert (traffic.take_seen().champion.failed, traffic.challenger_busy) == (3, 0)

    asyncio.run(ask())


def test_a_shadow_reads_a_copy_in_the_background_and_never_changes_or_delays_an_answer() -> None:
    async def ask() -> None:
        challenger = Version("2", "8")
        challenger.gate = asyncio.Event()
        traffic = Traffic(Version("1"), answer_s=30)
        traffic.follow(SHADOW, challenger)
        assert await read(traffic, 10) == {"1": 10}
        await asyncio.sleep(0)
        assert (challenger.asked, traffic.challenger_busy) == (SHADOWS, SHADOWS)
        challenger.gate.set()
        await asyncio.sleep(0.01)
        counts = traffic.take_seen()
        assert (counts.skipped, counts.differed, counts.agreed) == (10 - SHADOWS, SHADOWS, 0)
        challenger.text = "7"
        await read(traffic, 1)
        await asyncio.sleep(0.01)
        challenger.problem = Lost("its replicas died")
        assert await read(traffic, 1) == {"1": 1}
        await asyncio.sleep(0.01)
        counts = traffic.take_seen()
        assert (counts.agreed, counts.differed, counts.challenger.failed, counts.champion.answered) == (1, 0, 1, 2)

    asyncio.run(ask())


def test_while_the_champion_is_replaced_nobody_asks_it() -> None:
    async def ask() -> None:
        champion, challenger = Version("1"), Version("2")
        traffic = Traffic(champion, answer_s=30)
        begun = traffic.choose("untrained@1")
        champion.gate = asyncio.Event()
        waiting = asyncio.create_task(read(traffic, 1))
        await asyncio.sleep(0)
        traffic.follow(ALL, challenger)
        assert [card.version for card in traffic.cards()] == ["2"] and traffic.card.version == "2"
        assert await read(traffic, 5) == {"2": 5}
        with pytest.raises(Lost, match="version 1 is served no more"):
            await begun.read([b""], name="", explain=False)
        # What it had before is answered, and can be waited for.
        assert traffic.champion_busy == 1
        champion.gate.set()
        assert await waiting == {"1": 1}
        assert traffic.champion_busy == 0
        assert traffic.take_seen().champion.answered == 0
        # And so it is with what answered for it.
        challenger.gate = asyncio.Event()
        waiting = asyncio.create_task(read(traffic, 1))
        await asyncio.sleep(0)
        traffic.follow(None, None)
        assert await read(traffic, 1) == {"1": 1}
        assert traffic.challenger_busy == 1
        challenger.gate.set()
        assert await waiting == {"2": 1}
        assert traffic.challenger_busy == 0

    asyncio.run(ask())


def test_a_canary_that_fails_while_it_takes_the_champions_place_is_asked_again() -> None:
    async def ask() -> None:
        champion, challenger = Version("1"), Version("2", problem=Lost("its replicas died"))
        challenger.gate = asyncio.Event()
        traffic = Traffic(champion, answer_s=30)
        traffic.follow(Plan("beside", "2", "canary", 100), challenger)
        waiting = asyncio.create_task(read(traffic, 1))
        await asyncio.sleep(0)
        traffic.follow(ALL, challenger)
        challenger.gate.set()
        with pytest.raises(Lost, match="its replicas died"):
            await waiting
        assert (champion.asked, challenger.asked) == (0, 2)

    asyncio.run(ask())


def test_an_adapter_is_the_champions_until_the_champion_is_replaced() -> None:
    def adapted(version: str) -> Version:
        model = Version(version, f"ink {version}")
        model.card = model.card.model_copy(update={"name": "untrained:ink"})
        return model

    def text(model: Model | None = None) -> str:
        found = asyncio.run((model or traffic.choose("untrained:ink")).read([b""], name="", explain=False))
        return f"{found.found.text} of {found.card.version}" if isinstance(found, ReadBy) else type(found).__name__

    traffic = Traffic(Version("1"), adapted("1"), answer_s=30)
    challenger = [Version("2"), adapted("2")]
    assert text() == "ink 1 of 1"
    traffic.follow(CANARY, *challenger)
    assert text() == "ink 1 of 1"
    assert [(card.name, card.role) for card in traffic.cards()] == [
        ("untrained", "champion"),
        ("untrained:ink", None),
        ("untrained", "challenger"),
    ]
    begun = traffic.choose("untrained:ink")
    traffic.follow(ALL, *challenger)
    # A request or a clip that had begun goes on with the version that answers now.
    assert text() == text(begun) == "ink 2 of 2"
    traffic.follow(None, None)
    traffic.follow(ALL, Version("3"))
    with pytest.raises(Lost, match="untrained:ink is served no more"):
        text(begun)


def news(gateway: str, table: Table, counts: Comparison | None = None) -> News:
    return News(gateway, table.revision, counts or Comparison())


def test_the_board_adds_up_what_gateways_saw_and_gives_a_challenger_up_by_itself() -> None:
    board = Board()
    assert board.exchange(news("a", Table()), 0).plan is None
    table = board.post(CANARY, Bounds())
    # What was seen before the plan held says nothing of it.
    assert board.exchange(news("a", Table(), seen((0, 0), (0, 50))), 1) == table
    assert board.exchange(news("a", table, seen((10, 0), (0, 2))), 2) == table
    assert board.status(2).seen.challenger.failed == 2
    after = board.exchange(news("b", table, seen((17, 0), (0, 1))), 3)
    assert after == Table(table.revision + 1, None)
    status = board.status(3)
    assert status.ended is not None and status.ended.plan == CANARY
    assert status.ended.reason.startswith("it failed on 3 of 3 items, the champion on 0 of 27")
    assert {told.gateway for told in status.gateways} == {"a", "b"}
    assert [told.gateway for told in board.status(2 + GONE_S).gateways] == ["b"]
    # A release that takes everything is not compared.
    table = board.post(ALL, Bounds())
    assert board.exchange(news("b", table, seen((0, 0), (0, 500))), 4) == table
    assert board.status(4).ended is None


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
        # The board is gone: the champion alone.
        assert await look(None) == 0
        assert await look(Table(1, ALL)) == 100
        # But not while the champion may be half replaced: then until the board says so.
        assert await look(None) == 100
        assert await look(Table()) == 100
        assert await look(Table(2, None)) == 0
        assert told[-1].seen.challenger.answered == 100

    asyncio.run(ask())


def test_answers_say_which_version_they_are_of_and_the_metrics_count_them() -> None:
    traffic = Traffic(Version("1"), answer_s=30)
    traffic.follow(Plan("beside", "2", "canary", 50), Version("2", "8"))
    app = http_app(traffic, Limits(), outcomes=traffic.outcomes)

    async def ask() -> tuple[list[tuple[str, str]], list[dict[str, str]], str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answers = [(await client.post("/v1/recognize", files=upload(picture(1)))).json() for _ in range(4)]
            models = (await client.get("/v1/models")).json()["models"]
            said = [(answer["model"]["version"], answer["text"]) for answer in answers]
            return said, models, (await client.get("/metrics")).text

    answers, models, metrics = asyncio.run(ask())
    assert answers == [("1", "7"), ("2", "8")] * 2
    assert [(model["version"], model["role"]) for model in models] == [("1", "champion"), ("2", "challenger")]
    counted = {
        (sample.labels["role"], sample.labels["version"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "glyphrun_release_items_total"
    }
    assert counted == {("champion", "1", "answered"): 2, ("challenger", "2", "answered"): 2}


def test_a_server_is_found_by_its_name_and_what_a_killed_one_left_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def address(given: str | None = None) -> str | None:
        found = server_of("shirts", given)
        return None if found is None else found.address

    assert servers() == [] and address() is None
    folder = tmp_path / "servers"
    folder.mkdir()
    ended = 2**22 + 1  # more than Linux gives
    for place, (name, process) in enumerate([("shirts", os.getpid()), ("lines", os.getpid()), ("shirts", ended)]):
        said = Announcement(name=name, address=f"127.0.0.1:{place}", process=process)
        (folder / f"{place}.json").write_text(said.model_dump_json())
    # Of another machine with the same home nothing is known here.
    elsewhere = Announcement(name="shirts", address="10.0.0.2:1", host="elsewhere", process=ended)
    (folder / "elsewhere.json").write_text(elsewhere.model_dump_json())
    assert address() == "127.0.0.1:0"
    assert len(list(folder.iterdir())) == 3
    assert address("10.0.0.1:6379") == "10.0.0.1:6379"
    (folder / "3.json").write_text((folder / "0.json").read_text())
    with pytest.raises(SeveralServers, match="Several servers of shirts.*--address"):
        address()
    # The address that is named then is known with the token that its Ray asks for.
    asking = Announcement(name="shirts", address="127.0.0.1:9", process=os.getpid(), auth="token")
    (folder / "9.json").write_text(asking.model_dump_json())
    assert server_of("shirts", "127.0.0.1:9") == asking
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert address() == "10.0.0.2:6379"
