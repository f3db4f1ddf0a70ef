"""A release under way: who reads an item, and what is counted of it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Failed, Lost, Model, ReadBy, Unanswered
from glyphrun_serve.release_plan import Plan
from glyphrun_serve.routes import http_app
from glyphrun_serve.traffic import SHADOWS, Portions, Traffic
from serving import picture, upload
from two_versions import ALL, CANARY, SHADOW, Version, read


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
