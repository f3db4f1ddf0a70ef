"""A served ensemble under load while its processes are killed: clients see degraded answers, and no failed request."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from glyphrun.client import Answer, Client
from glyphrun.ensemble_bundle import load_reader
from glyphrun.ensembled import make_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun_serve.app import Server, ServeSettings, run
from glyphrun_serve.batching import Batching
from glyphrun_serve.limits import Limits
from glyphrun_serve.served_model import BY_VALUE_BYTES
from load import load
from serving import assert_refused, assert_same_reading, picture, upload
from tiny_bundles import save_tiny_bundle

MEMBERS = ("one", "two", "three")
TRACKLET = [picture(seed) for seed in (2, 3, 4)]
# So many frames that they go from replica to replica by reference.
LONG = TRACKLET * 75
# Decoding it takes longer than taking it in.
LARGE = picture(5, 2000, 2000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    members = {
        name: save_tiny_bundle(folder / name, "query-digits-nano", seed=seed, vote_floor=0.0)
        for seed, name in enumerate(MEMBERS)
    }
    settings = EnsembleSettings(weights={"two": 2.0})
    make_ensemble(members, folder / "ensemble", settings)
    return folder / "ensemble"


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    settings = ServeSettings(
        bundle=bundle, precision="float32", batching=Batching(most=4), preprocess=True, limits=Limits(frames=len(LONG))
    )
    # A second replica of one member and of the gateway, and a queue so short that a burst fills it.
    options = {
        "gateway": {"num_replicas": 2},
        "recognizer-one": {"num_replicas": 2},
        "preprocess": {"max_ongoing_requests": 4, "max_queued_requests": 8},
    }
    with run(settings, port=0, options=options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def replicas(deployment: str) -> list[int]:
    """Processes of a deployment that this test's own Ray has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that has ended meanwhile
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:glyphrun:{deployment}"):
                found.append(process.pid)
    return found


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def silent(answer: dict[str, Any]) -> dict[str, str]:
    return {said["member"]: said["status"] for said in answer["members"] if said["status"] != "voted"}


def test_members_in_processes_of_their_own_answer_as_they_do_in_one(client: httpx.Client, bundle: Path) -> None:
    ensemble = load_reader(bundle, precision="float32")
    assert ensemble.prepare(TRACKLET, name="x")[0].pixels.nbytes < BY_VALUE_BYTES
    assert ensemble.prepare(LONG, name="x")[0].pixels.nbytes > BY_VALUE_BYTES
    answer, long = (client.post("/v1/recognize", files=upload(*frames)).json() for frames in (TRACKLET, LONG))
    expected, expected_long = ensemble.read([TRACKLET, LONG])
    assert_same_reading(answer, expected)
    assert_same_reading(long, expected_long)
    assert [(said["member"], said["text"], said["status"]) for said in answer["members"]] == [
        (ballot.member, ballot.text, "voted") for ballot in expected.members
    ]
    for said, ballot in zip(answer["members"], expected.members, strict=True):
        assert said["confidence"] == pytest.approx(ballot.confidence, abs=1e-4)
        assert said["weight"] == pytest.approx(ballot.weight, abs=1e-4)
        assert 0 < said["ms"] <= answer["timings_ms"]["total"]
    assert answer["degraded"] is False
    assert {"decode", "read", "vote", "total"} <= set(answer["timings_ms"])
    told = answer["model"]
    assert (told["name"], told["version"]) == (bundle.name, "0")
    assert told["decode"]["ensemble"] == {"vote": "mbr", "weights": {"two": 2.0}, "deadline_ms": {}, "quorum": 1}
    assert list(told["decode"]["members"]) == list(MEMBERS)
    assert told["decode"]["members"]["one"]["search"] == "greedy"


def test_it_is_ready_once_every_member_is_warm_and_says_how_long_that_took(
    client: httpx.Client, server: Server
) -> None:
    started = client.get("/readyz").json()["started"]
    assert set(started) == {"preprocess", *(f"recognizer-{name}" for name in MEMBERS)} == set(server.started)
    assert all(
        started[f"recognizer-{name}"]["load_ms"] > 0 < started[f"recognizer-{name}"]["warm_up_ms"] for name in MEMBERS
    )
    assert server.ready_s > max(start.load_ms for start in server.started.values()) / 1e3


def test_a_damaged_image_is_the_items_fault_and_features_are_a_single_recognizers(client: httpx.Client) -> None:
    damaged = client.post("/v1/recognize", files=upload(picture(1), b"text"))
    assert_refused(damaged, 422, "bad_image", "The tracklet, frame 1")
    assert_refused(client.post("/v1/embed", files=upload(picture(1))), 501, "unsupported", "ask one of one, two, three")


def test_what_a_full_queue_turns_away_is_told_when_to_come_again(server: Server) -> None:
    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=80)
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/recognize", files=upload(LARGE)) for _ in range(80)))

    responses = asyncio.run(burst())
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < 80
    for response in refused:
        assert_refused(response, 503, "busy", "try again")
        assert int(response.headers["retry-after"]) > 0
    assert not any(response.json()["degraded"] for response in responses if response.status_code == 200)


def test_killed_processes_cost_no_request(server: Server) -> None:
    with load(server.url, (TRACKLET, TRACKLET, LONG)) as told:
        told.after(5)
        # One of two replicas: what it had is asked again.
        kill(replicas("recognizer-one")[0])
        told.after(10)
        kill(replicas("preprocess")[0])
        told.after(10)
        # All that a member has.
        told.until(degraded=False)
        kill(replicas("recognizer-two")[0])
        told.until(degraded=True)
        assert list(silent(told.answers[-1])) == ["two"]
        told.until(degraded=False)
        told.after(3)
        # Every recognizer at once: requests wait for the first that are back.
        for replica in [replica for member in MEMBERS for replica in replicas(f"recognizer-{member}")]:
            kill(replica)
        told.after(6)
    assert told.failures == []
    whole = [answer for answer in told.answers if not answer["degraded"]]
    assert len({(answer["frames"], answer["text"]) for answer in whole}) == 2


def test_a_killed_gateway_costs_what_it_was_answering_and_the_typed_client_nothing(server: Server) -> None:
    retried: list[Answer] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(server.url) as client:
            while not stop.is_set():
                retried.append(client.recognize(TRACKLET))

    plain = (TRACKLET,) * 4
    with ThreadPoolExecutor(4) as pool, load(server.url, plain, pause_s=0.0) as told:
        told.until(degraded=False)  # members that were killed before are back
        clients = [pool.submit(ask) for _ in range(4)]
        told.after(20)
        kill(replicas("gateway")[0])
        told.after(40)
        stop.set()
    assert len(told.failures) <= len(plain), told.failures
    for one in clients:
        one.result()
    # On a busy machine a member may be late.
    assert len({answer.text for answer in retried if not answer.degraded}) == 1
