"""Requests that are worth a label become a data set, and none of them is slower or fails by it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from commands import refusal
from glyphrun.data.check import check_dataset
from glyphrun.data.rolling import UNLABELLED, RollingDataset, claim_folder
from glyphrun.data.sample import DatasetCard, DatasetError, Sample, iterate_samples, read_card
from glyphrun.data.show import contact_sheet
from glyphrun.decoding.vote import Hypothesis, MemberBallot
from glyphrun.prediction import Prediction
from glyphrun_serve import kept_samples
from glyphrun_serve.app import ServeSettings, application
from glyphrun_serve.kept_samples import KeptSamples
from glyphrun_serve.limits import Limits
from glyphrun_serve.routes import http_app
from glyphrun_serve.sample_log import SampleLog
from local_app import CARD, EngineReader, no_log, served
from serving import in_base64, picture, save_untrained, upload

CARD_OF_NOTHING = DatasetCard(name="kept", licence="none", description="", charset="", counts={}, shards=())
SURE, UNSURE, ABSTAINED, DIVIDED, LATE = (picture(seed) for seed in range(5))


def read_as(confidence: float, *members: MemberBallot, abstained: bool = False) -> Prediction:
    best = Hypothesis("7", -0.1, (-0.1,))
    return Prediction("7", confidence, (best,), (), abstained=abstained, members=members)


class Reader(EngineReader):
    """Says of each picture what a test is about."""

    said: ClassVar = {
        SURE: read_as(0.9),
        UNSURE: read_as(0.3),
        ABSTAINED: read_as(0.8, abstained=True),
        DIVIDED: read_as(
            0.9, MemberBallot("a", "7", 0.9, 1.0, 3.0, "voted"), MemberBallot("b", "1", 0.6, 1.0, 3.0, "voted")
        ),
        LATE: read_as(0.9, MemberBallot("a", "7", 0.9, 1.0, 3.0, "voted"), MemberBallot("b", "", 0, 0, None, "late")),
    }

    def __init__(self) -> None:
        pass

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Prediction:
        return self.said.get(frames[0]) or read_as(0.1)


def kept_in(folder: Path, **settings: float) -> KeptSamples:
    return KeptSamples(SampleLog(folder=folder, **settings), CARD, every_s=0.05, now=lambda: 1e9)  # type: ignore[arg-type]


def test_requests_worth_a_label_become_a_data_set_that_can_be_checked_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "unsure"
    samples = kept_in(folder)
    with (
        served(http_app(Reader(), Limits(), log=no_log, samples=samples)) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        for frame in (SURE, LATE, UNSURE, ABSTAINED):
            form = upload(frame, picture(9)) if frame is UNSURE else upload(frame)
            assert client.post("/v1/recognize", files=form, headers={"X-Request-Id": "match-7"}).status_code == 200
        items = {"items": [in_base64(DIVIDED), in_base64(SURE), in_base64(picture(10))]}
        assert client.post("/v1/recognize/batch", json=items).status_code == 200
        samples.close()
        metrics = client.get("/metrics").text
    assert check_dataset(folder) == []
    assert contact_sheet(folder, tmp_path / "sheet.png").stat().st_size > 1000
    kept = list(iterate_samples(folder, UNLABELLED))
    assert [sample.frames for sample in kept] == [(UNSURE, picture(9)), (ABSTAINED,), (DIVIDED,), (picture(10),)]
    assert [sample.meta["why"] for sample in kept] == [
        ["low confidence"],
        ["abstained"],
        ["members disagree"],
        ["low confidence"],
    ]
    assert [sample.text for sample in kept] == [None] * 4
    assert kept[2].meta["members"] == {"a": "7", "b": "1"} and kept[2].meta["reading"] == "7"
    assert kept[0].meta["at"] == "2001-09-09T01:46:40+00:00" and kept[0].source == "untrained version 0"
    assert kept[0].group == kept[1].group != kept[2].group == kept[3].group, "what came together stays together"
    assert 'glyphrun_samples_total{outcome="kept"} 4.0' in metrics
    written = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"passwd" not in written and b"match-7" not in written


def test_the_same_frames_are_kept_once_also_by_the_next_server(tmp_path: Path) -> None:
    for kept, known in ((1, 1), (0, 2)):
        samples = kept_in(tmp_path)
        for _ in range(2):
            samples.offer([UNSURE], read_as(0.1), CARD.identity())
        samples.close()
        assert samples.outcomes == {"kept": kept, "known": known, "dropped": 0, "failed": 0}
    assert read_card(tmp_path).counts == {UNLABELLED: 1}


def test_the_threshold_is_the_one_that_is_stated(tmp_path: Path) -> None:
    samples = kept_in(tmp_path, below=0.95)
    samples.offer([SURE], read_as(0.949), CARD.identity())
    samples.offer([LATE], read_as(0.95), CARD.identity())
    samples.close()
    assert [sample.frames for sample in iterate_samples(tmp_path)] == [(SURE,)]


def test_what_the_disk_does_not_take_in_time_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_samples, "QUEUE_ITEMS", 2)
    monkeypatch.setattr(kept_samples, "QUEUE_BYTES", 3000)
    samples = KeptSamples(SampleLog(folder=tmp_path), CARD, every_s=60)
    for size in (1000, 2001, 1000, 10):
        samples.offer([b"x" * size], read_as(0.1), CARD.identity())
    samples.close()
    assert samples.outcomes == {"kept": 1, "known": 1, "dropped": 2, "failed": 0}


def test_requests_are_answered_when_samples_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "unsure"
    folder.write_text("a file in the place of the folder", encoding="utf-8")
    samples = kept_in(folder)

    async def ask() -> httpx.Response:
        app = http_app(Reader(), Limits(), log=no_log, samples=samples)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/recognize", files=upload(UNSURE))

    assert asyncio.run(ask()).status_code == 200
    samples.close()
    assert samples.outcomes["failed"] == 1
    assert folder.read_text(encoding="utf-8").startswith("a file")


def unlabelled(number: int, size: int = 100) -> Sample:
    return Sample(f"{number:04}", (number.to_bytes(4, "big") * (size // 4),), None, UNLABELLED)


def names(folder: Path) -> list[int]:
    return [int(sample.sample_id) for sample in iterate_samples(folder)]


def test_the_oldest_go_first_and_the_bounds_hold_after_each_addition(tmp_path: Path) -> None:
    few = RollingDataset(tmp_path / "few", CARD_OF_NOTHING, most_items=16, most_bytes=2**20)
    small = RollingDataset(tmp_path / "small", CARD_OF_NOTHING, most_items=10_000, most_bytes=160_000)
    for number in range(50):
        few.add([unlabelled(number)])
        small.add([unlabelled(number, 6000)])
        held = names(few.folder)
        assert held == list(range(number + 1))[-len(held) :] and min(number + 1, 15) <= len(held) <= 16
        assert sum(path.stat().st_size for path in small.folder.glob("*.parquet")) <= 160_000
    assert names(small.folder)[-1] == 49 and len(names(small.folder)) >= 15
    assert small.add([unlabelled(99, 20_004)]) == 0, "more than a shard may have"
    few.add(map(unlabelled, range(100, 140)))
    assert names(few.folder) == list(range(124, 140))


def test_two_servers_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(first: int) -> None:
        dataset = RollingDataset(tmp_path, CARD_OF_NOTHING, most_items=1000, most_bytes=2**20)
        for number in range(first, first + 10):
            dataset.add([unlabelled(number)])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, (0, 10, 20, 30)))
    assert sorted(names(tmp_path)) == list(range(40))
    assert not [problem for problem in check_dataset(tmp_path) if "Frame" not in problem.what]


def test_what_a_killed_server_left_is_no_part_of_the_data_set(tmp_path: Path) -> None:
    dataset = RollingDataset(tmp_path, CARD_OF_NOTHING, most_items=1000, most_bytes=2**20)
    dataset.add([unlabelled(1)])
    (tmp_path / "part-00.parquet").write_bytes(b"renamed, but not in the card")
    (tmp_path / ".part.1.partial").write_bytes(b"half")
    dataset.add([unlabelled(2)])
    assert names(tmp_path) == [1, 2]
    assert len(list(tmp_path.glob("*part*"))) == 1


def test_a_folder_of_something_else_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    shirts = tmp_path / "shirts"
    shirts.mkdir()
    (shirts / "dataset.json").write_text("{}", encoding="utf-8")
    bundle = save_untrained(tmp_path / "bundle")
    with pytest.raises(DatasetError, match="holds something other than samples"):
        application(ServeSettings(bundle=bundle, log_samples=SampleLog(folder=shirts)), {})
    assert f"{shirts} holds something other" in refusal(
        "serve", str(bundle), "--port", "0", "--log-samples", str(shirts)
    )
    claim_folder(tmp_path / "new")
    claim_folder(tmp_path / "new")
    assert [path.name for path in shirts.iterdir()] == ["dataset.json"]
