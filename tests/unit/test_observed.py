"""Every request leaves an id, a line in the log and its place in the metrics."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glyphrun.bundle import load_engine
from glyphrun.decoding.vote import Hypothesis, MemberBallot
from glyphrun.prediction import Prediction
from glyphrun_serve.limits import Limits
from glyphrun_serve.observe import log_to_stderr
from glyphrun_serve.routes import http_app
from glyphrun_serve.traffic import Traffic
from local_app import Alone, EngineReader, served
from serving import assert_refused, picture, save_untrained, upload

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana.json"


@pytest.fixture(scope="module")
def log() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, log: list[dict[str, Any]]) -> Iterator[httpx.Client]:
    engine = load_engine(save_untrained(tmp_path_factory.mktemp("bundles") / "untrained"), precision="float32")
    traffic = Traffic(EngineReader(engine), answer_s=30)
    with (
        served(http_app(traffic, Limits(), log=log.append, outcomes=traffic.outcomes)) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        yield client


def scraped(client: httpx.Client) -> dict[str, float]:
    """Value by name and labels."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def line_of(log: list[dict[str, Any]], response: httpx.Response) -> dict[str, Any]:
    """The line of a request, which is written when its answer has been sent."""
    for _ in range(1000):
        for line in log:
            if line["request_id"] == response.headers["x-request-id"]:
                return line
        time.sleep(0.005)
    raise AssertionError("no line")


def test_an_id_that_is_given_is_kept_and_one_that_could_forge_a_log_is_not(
    client: httpx.Client, log: list[dict[str, Any]]
) -> None:
    given = client.get("/v1/models", headers={"X-Request-Id": "camera-1:42"})
    assert given.headers["x-request-id"] == "camera-1:42"
    assert line_of(log, given)["path"] == "/v1/models"
    made = [client.get("/v2", headers={"X-Request-Id": bad}) for bad in ("a b", 'x"}', "x" * 129, "")]
    made.append(client.get("/v2"))
    assert len({response.headers["x-request-id"] for response in made}) == 5
    for response in made:
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
        assert_refused(response, 404, "not_found", "nothing at /v2")


def test_a_line_of_the_log_says_who_asked_what_and_how_it_ended(
    client: httpx.Client, log: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = client.post("/v1/recognize", files=upload(picture(1)))
    line = dict(line_of(log, answer))
    assert line.pop("ms") > 0
    assert line == {
        "request_id": answer.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/recognize",
        "status": 200,
        "asked_by": "127.0.0.1",
    }
    probes = [client.get(path).headers["x-request-id"] for path in ("/healthz", "/readyz", "/metrics")]
    assert line_of(log, client.get("/v1/models")) and not any(line["request_id"] in probes for line in log)
    log_to_stderr({"path": "/\nforged"})
    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["path"] == "/\nforged" and "at" in json.loads(written)


def test_metrics_count_requests_by_route_and_readings_by_confidence(client: httpx.Client) -> None:
    before = scraped(client)
    answers = [client.post("/v1/recognize", files=upload(picture(seed))).json() for seed in range(3)]
    client.post("/v1/recognize", files=upload(b"text"))
    for made_up in ("/v3", "/v4"):
        client.get(made_up)
    after = scraped(client)

    def more(name: str, **labels: str) -> float:
        key = name + json.dumps(labels, sort_keys=True)
        return after[key] - before.get(key, 0)

    assert more("glyphrun_requests_total", route="/v1/recognize", method="POST", status="200") == 3
    assert more("glyphrun_requests_total", route="/v1/recognize", method="POST", status="422") == 1
    assert more("glyphrun_requests_total", route="none", method="GET", status="404") == 2
    assert more("glyphrun_request_seconds_count", route="/v1/recognize") == 4
    assert more("glyphrun_confidence_count") == 3
    low = sum(answer["confidence"] <= 0.5 for answer in answers)
    assert more("glyphrun_confidence_bucket", le="0.5") == low
    assert more("glyphrun_batch_items_sum") == 3
    assert more("glyphrun_stage_seconds_count", stage="encode") == 3
    assert after["glyphrun_requests_in_flight{}"] == 1, "the request for the metrics itself"
    assert after["glyphrun_items_in_flight{}"] == 0
    assert not any("/v3" in key for key in after)


class CommitteeReader(Alone):
    """An ensemble with a member that is late and one that fails; and a reader that breaks when it is asked to embed."""

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Prediction:
        members = (
            MemberBallot("a", "7", 0.4, 1.0, 3.0, "voted"),
            MemberBallot("b", "", 0.0, 0.0, None, "late"),
            MemberBallot("c", "", 0.0, 0.0, 1.0, "failed: no memory at 0x7f"),
        )
        return Prediction("7", 0.4, (Hypothesis("7", -0.9, (-0.9,)),), (), abstained=True, members=members, batch=5)

    async def embed(self, frames: Sequence[bytes], *, name: str) -> Any:
        raise KeyError("a bug")

    async def ready(self) -> bool:
        return True


def test_abstentions_failed_members_and_bugs_are_counted_and_a_bug_is_told_to_the_log_alone() -> None:
    log: list[dict[str, Any]] = []
    app = http_app(CommitteeReader(), Limits(), log=log.append)

    async def ask() -> tuple[httpx.Response, str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/v1/recognize", files=upload(b"x"))
            failed = await client.post("/v1/embed", files=upload(b"x"))
            return failed, (await client.get("/metrics")).text

    failed, metrics = asyncio.run(ask())
    assert_refused(failed, 500, "internal", "its log says why")
    assert "a bug" not in failed.text
    assert log[-1]["request_id"] == failed.headers["x-request-id"]
    assert log[-1]["status"] == 500 and "KeyError: 'a bug'" in log[-1]["failure"]
    assert "glyphrun_abstentions_total 1.0" in metrics
    assert "glyphrun_batch_items_sum 5.0" in metrics
    for member, status in (("a", "voted"), ("b", "late"), ("c", "failed")):
        assert f'glyphrun_member_answers_total{{member="{member}",status="{status}"}} 1.0' in metrics
    assert 'glyphrun_requests_total{method="POST",route="/v1/embed",status="500"} 1.0' in metrics


def test_the_dashboard_asks_for_metrics_that_there_are(client: httpx.Client) -> None:
    client.post("/v1/recognize", files=upload(picture(1)))
    there = {name.split("{")[0] for name in scraped(client)} | {
        "glyphrun_member_answers_total",  # of an ensemble
        "glyphrun_samples_total",  # where samples are kept
    }
    dashboard = json.loads(GRAFANA.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    named = {name for expression in asked for name in re.findall(r"glyphrun_\w+", expression)}
    assert named and named <= there
    # Each thing that is counted is shown.
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named}
    assert {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in there} == shown
