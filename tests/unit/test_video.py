"""A clip is read tracklet by tracklet, as the engine reads what its boxes cut out."""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from clips import cut_out, save_clip
from glyphrun.bundle import load_engine
from glyphrun.engine import Engine
from glyphrun.images import decode_image
from glyphrun_serve.clips import Clip
from glyphrun_serve.errors import RETRY_AFTER_S
from glyphrun_serve.limits import Limits
from glyphrun_serve.routes import http_app
from local_app import EngineReader, no_log, served
from serving import assert_refused, assert_same_reading, picture, save_untrained

LIMITS = Limits(
    frames=4, items=3, pixels=100_000, clips=1, clip_s=3, clip_frames=60, clip_bytes=400_000, clip_pixels=100_000
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return save_clip(folder / "clip.mp4", 20)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(save_untrained(folder / "untrained"), precision="float32")


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with served(http_app(EngineReader(engine), LIMITS, log=no_log)) as url:
        yield url


def post(url: str, clip: bytes, boxes: Any = None) -> httpx.Response:
    text = boxes if boxes is None or isinstance(boxes, str) else json.dumps(boxes)
    data = {} if text is None else {"boxes": text}
    # The name leads nowhere.
    return httpx.post(
        f"{url}/v1/video", files={"clip": ("../../clip.m3u8", clip)}, data=data, trust_env=False, timeout=60
    )


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def boxes_of(tracklet: str, frames: list[int], box: tuple[float, float, float, float]) -> list[dict[str, Any]]:
    return [{"tracklet": tracklet, "frame": frame, "box": box} for frame in frames]


def test_each_tracklet_is_read_when_its_last_frame_has_been_decoded(url: str, clip: Path, engine: Engine) -> None:
    late = boxes_of("late", [2, 15], (40, 8, 32, 40))
    early = boxes_of("early", [3, 1], (0, 0, 24, 32))
    found = events(post(url, clip.read_bytes(), late + early))
    assert [(name, data.get("tracklet")) for name, data in found] == [
        ("reading", "early"),
        ("reading", "late"),
        ("done", None),
    ]
    assert [data["frames"] for _, data in found] == [[1, 3], [2, 15], 4]
    for (_, data), box, numbers in zip(found, ((0, 0, 24, 32), (40, 8, 32, 40)), ([1, 3], [2, 15]), strict=False):
        assert_same_reading(data["answer"], engine.read([cut_out(clip, box, numbers)], explain=True)[0])
    assert found[-1][1]["tracklets"] == 2


def test_a_clip_without_boxes_is_one_tracklet_of_frames_spread_over_it(url: str, clip: Path, engine: Engine) -> None:
    reading, done = events(post(url, clip.read_bytes()))
    assert reading[1]["frames"] == [2, 7, 12, 17]
    whole = cut_out(clip, (0, 0, 96, 64), [2, 7, 12, 17])
    assert_same_reading(reading[1]["answer"], engine.read([whole], explain=True)[0])
    assert done == ("done", {"tracklets": 1, "frames": 4})


def test_boxes_may_be_long_and_are_text(engine: Engine, url: str, clip: Path) -> None:
    many = [box for number in range(2000) for box in boxes_of(f"tracklet {number:04d}", list(range(20)), (0, 0, 9, 9))]
    assert len(json.dumps(many)) > 2**21
    roomy = LIMITS.model_copy(update={"clip_bytes": 8 * 2**20})
    with served(http_app(EngineReader(engine), roomy, log=no_log)) as large:
        response = post(large, clip.read_bytes(), [*many, *boxes_of("late", [20], (0, 0, 9, 9))])
    assert_refused(response, 422, "bad_boxes", "frame 20 is behind the end of the clip")
    files = {"clip": clip.read_bytes(), "boxes": b"[]"}
    response = httpx.post(f"{url}/v1/video", files=files, timeout=60, trust_env=False)
    assert_refused(
        response, 422, "invalid_request", "boxes is a file where text is asked for; with curl: -F 'boxes=<FILE'"
    )


def test_boxes_are_cut_at_the_edge_and_a_long_tracklet_is_read_at_some_of_its_frames(
    url: str, clip: Path, engine: Engine
) -> None:
    outside = boxes_of("a", list(range(8)), (-9.6, 50.2, 20, 99))
    (_, reading), _ = events(post(url, clip.read_bytes(), outside))
    assert reading["frames"] == [1, 3, 5, 7]
    assert_same_reading(reading["answer"], engine.read([cut_out(clip, (0, 50, 10, 14), [1, 3, 5, 7])], explain=True)[0])


@pytest.mark.parametrize(
    ("boxes", "status", "code", "words"),
    [
        ("[", 422, "bad_boxes", "boxes is wrong"),
        ("[]", 422, "bad_boxes", "boxes is empty"),
        ('[{"tracklet": "a", "frame": 0, "box": [0, 0, NaN, 9]}]', 422, "bad_boxes", "boxes"),
        (boxes_of("a", [0], (0, 0, 1e300, 9)), 422, "bad_boxes", "boxes, 0.box.2, is wrong"),
        ([{"tracklet": "a", "frame": 0}], 422, "bad_boxes", "boxes, 0.box, is wrong"),
        (boxes_of("a", [-1], (0, 0, 9, 9)), 422, "bad_boxes", "boxes, 0.frame, is wrong"),
        (boxes_of("a", [20], (0, 0, 9, 9)), 422, "bad_boxes", "frame 20 is behind the end of the clip, which has 20"),
        (boxes_of("a", [1], (96, 0, 9, 9)), 422, "bad_boxes", "frame 1 has no pixel in the picture of 96 × 64"),
        (boxes_of("a", [1, 1], (0, 0, 9, 9)), 422, "bad_boxes", "there twice"),
        (
            [box for name in "abcd" for box in boxes_of(name, [0], (0, 0, 9, 9))],
            413,
            "too_many_tracklets",
            "4 tracklets; the limit is 3",
        ),
        ("[" * 100_000, 422, "bad_boxes", "boxes is wrong"),
    ],
)
def test_boxes_that_a_clip_cannot_have_are_refused(
    url: str, clip: Path, boxes: Any, status: int, code: str, words: str
) -> None:
    assert_refused(post(url, clip.read_bytes(), boxes), status, code, words)


def test_a_clip_over_a_limit_is_refused_before_it_is_decoded(url: str, folder: Path) -> None:
    long = save_clip(folder / "long.mp4", 61, size=(32, 32), fps=60).read_bytes()
    assert_refused(post(url, long), 413, "clip_too_long", "61 frames in 1.0 s; the limits are 60 and 3 s")
    slow = save_clip(folder / "slow.mp4", 8, size=(32, 32), fps=2).read_bytes()
    assert_refused(post(url, slow), 413, "clip_too_long", "8 frames in 4.0 s")
    wide = save_clip(folder / "wide.mp4", 2, size=(640, 160)).read_bytes()
    assert_refused(post(url, wide), 413, "too_many_pixels", "640 × 160; the limit is 100,000 pixels a frame")
    many = [box for name in "abc" for box in boxes_of(name, [0, 1, 2, 3, 4, 5], (0, 0, 300, 300))]
    large = save_clip(folder / "large.mp4", 6, size=(300, 300)).read_bytes()
    assert_refused(post(url, large, many), 413, "too_many_pixels", "1,080,000 pixels in all; the limit is 100,000")
    assert_refused(post(url, b"\0" * 400_001), 413, "body_too_large", "400,000 bytes")


def test_a_clip_of_a_camera_that_was_held_upright_is_read_as_it_is_shown(clip: Path) -> None:
    """The header of an MP4 has a matrix for it (ISO 14496-12, tkhd): here a quarter turn to the right."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">4i", data, matrix) == (65536, 0, 0, 0)
    struct.pack_into(">5i", data, matrix, 0, 65536, 0, -65536, 0)
    pictures = []
    for source in (clip.read_bytes(), bytes(data)):
        opened = Clip(io.BytesIO(source), LIMITS)
        opened.ask(None)
        tracklet = opened.next()
        opened.close()
        assert tracklet is not None and len(tracklet.images) == 4
        pictures.append([decode_image(image) for image in tracklet.images])
    for lying, upright in zip(*pictures, strict=True):
        assert upright.shape == (96, 64, 3)
        assert np.array_equal(upright, np.rot90(lying, -1))


def test_what_is_no_clip_is_refused(url: str, clip: Path) -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    no_index = clip.read_bytes()[: len(clip.read_bytes()) // 2]  # an MP4 has it at its end
    for data in (b"", b"text", playlist, picture(1), no_index, b"\0\0\0\x20ftypisom" + b"\0" * 999):
        assert_refused(post(url, data), 422, "bad_clip", "send a whole MP4")
    assert (
        httpx.post(f"{url}/v1/video", data={"boxes": "[]"}, trust_env=False).json()["error"]["code"]
        == "invalid_request"
    )


def test_a_clip_that_breaks_off_ends_with_an_error_after_what_could_be_read(url: str, folder: Path) -> None:
    whole = save_clip(folder / "whole.avi", 20).read_bytes()
    half = whole[: len(whole) // 2]
    boxes = boxes_of("early", [0, 1], (0, 0, 24, 32)) + boxes_of("late", [2, 19], (0, 0, 24, 32))
    (first, reading), (last, error) = events(post(url, half, boxes))
    assert (first, reading["tracklet"], last, error["tracklet"]) == ("reading", "early", "error", None)
    assert error["error"]["code"] == "clip_broken" and "breaks off before frame 19" in error["error"]["message"]
    assert error["error"]["request_id"]
    assert_refused(post(url, half, boxes[2:]), 422, "clip_broken", "export it again")


def test_a_clip_that_cannot_be_read_in_time_ends_with_an_error(engine: Engine, clip: Path) -> None:
    class Slow(EngineReader):
        async def read(self, frames, *, name, explain):  # type: ignore[no-untyped-def]
            if name == "Tracklet late":
                await asyncio.sleep(60)
            return await super().read(frames, name=name, explain=explain)

    boxes = boxes_of("early", [0], (0, 0, 24, 32)) + boxes_of("late", [1], (0, 0, 24, 32))
    with served(http_app(Slow(engine), LIMITS.model_copy(update={"answer_s": 4.0}), log=no_log)) as url:
        (first, _), (second, error), *_ = events(post(url, clip.read_bytes(), boxes))
    assert (first, second, error["tracklet"], error["error"]["code"]) == ("reading", "error", "late", "too_slow")


def test_one_clip_too_many_at_once_is_told_to_wait_and_a_client_that_leaves_frees_its_place(
    engine: Engine, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    released = Event()

    class Waiting(EngineReader):
        async def read(self, frames, *, name, explain):  # type: ignore[no-untyped-def]
            while not released.is_set():
                await asyncio.sleep(0.01)
            return await super().read(frames, name=name, explain=explain)

    data = clip.read_bytes()
    with served(http_app(Waiting(engine), LIMITS, log=no_log)) as url:
        with httpx.stream("POST", f"{url}/v1/video", files={"clip": data}, trust_env=False) as leaving:
            assert leaving.status_code == 200
            busy = post(url, data)
            assert_refused(busy, 503, "busy", "Other clips are being read")
            assert busy.headers["retry-after"] == RETRY_AFTER_S
        for _ in range(200):
            with httpx.stream("POST", f"{url}/v1/video", files={"clip": data}, trust_env=False, timeout=60) as again:
                if again.status_code == 200:
                    released.set()
                    again.read()
                    break
            time.sleep(0.05)
        assert len(events(again)) == 2
    assert list(tmp_path.iterdir()) == []
    children = psutil.Process(os.getpid()).children()
    assert not [child for child in children if "clip_decoder.py" in " ".join(child.cmdline())]
