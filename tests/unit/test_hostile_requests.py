"""What is sent to harm a server is refused with a sentence, and costs it no memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from glyphrun.bundle import load_engine
from glyphrun.engine import Engine
from glyphrun_serve.access import Guard
from glyphrun_serve.limits import Limits
from glyphrun_serve.rates import Rate
from glyphrun_serve.routes import http_app
from local_app import EngineReader, no_log, served
from serving import assert_refused, assert_same_reading, picture, save_untrained, upload

MIB = 1024**2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(save_untrained(tmp_path_factory.mktemp("bundles") / "untrained"), precision="float32")


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    limits = Limits(body_bytes=4 * MIB, frames=8, pixels=4_000_000, request_pixels=24_000_000)
    with served(http_app(EngineReader(engine), limits, log=no_log)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def stating(width: int, height: int) -> bytes:
    """A PNG of no pixels that states a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_text_bomb() -> bytes:
    """A PNG whose compressed comment unpacks to 64 MiB."""
    whole = picture(1)
    header = 8 + 25
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 64 * MIB, 9))
    return whole[:header] + text + whole[header:]


def frames_of(format: str) -> bytes:
    pictures = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 99, 200)]
    return saved(pictures[0], format, save_all=True, append_images=pictures[1:])


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 10 * MIB)
    return buffer.getvalue()


BAD_PICTURES = {
    "an animated GIF": (frames_of("GIF"), "send each frame as a file of its own"),
    "an animated WebP": (frames_of("WEBP"), "send each frame as a file of its own"),
    "a TIFF of pages": (frames_of("TIFF"), "send each frame as a file of its own"),
    "a PNG cut short": (picture(1)[:-40], "cut short"),
    "a JPEG cut short": (saved(Image.effect_noise((64, 64), 90), "JPEG")[:-200], "cut short"),
    "a text bomb": (with_text_bomb(), "not a readable"),
    "an archive": (zipped(), "not a readable"),
    "a drawing": (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "not a readable",
    ),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "not a readable"),
    "a pickle": (
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93.",
        "not a readable",
    ),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_file_that_is_no_single_whole_picture_is_refused(client: httpx.Client, kind: str) -> None:
    data, words = BAD_PICTURES[kind]
    assert_refused(client.post("/v1/recognize", files=upload(data)), 422, "bad_image", words)
    assert_refused(client.post("/v1/embed", files=upload(data)), 422, "bad_image", words)


def test_a_picture_that_is_also_something_else_is_read_as_the_picture_alone(
    client: httpx.Client, engine: Engine
) -> None:
    both = picture(1) + zipped() + b"<script>alert(1)</script>"
    answer = client.post("/v1/recognize", files=upload(both))
    assert_same_reading(answer.json(), engine.read([[picture(1)]], explain=True)[0])
    assert answer.headers["content-type"] == "application/json"


def test_names_of_files_lead_nowhere(client: httpx.Client, tmp_path: Path) -> None:
    names = ["../../../../tmp/w", str(tmp_path / "written"), "C:\\w", "a\0b", "ü" * 500, "", "%2e%2e%2fw"]
    for name in names:
        answer = client.post("/v1/recognize", files=[("frames", (name, picture(1)))])
        assert answer.status_code in (200, 422), (name, answer.text)
        assert "error" not in answer.json() or answer.json()["error"]["code"] == "invalid_request"
    assert list(tmp_path.iterdir()) == []


def test_large_pictures_in_small_files_take_no_memory(client: httpx.Client) -> None:
    process = psutil.Process(os.getpid())
    bombs = [stating(2001, 2000), stating(20_000, 20_000), stating(2**31 - 1, 2**31 - 1)]
    small_files = [saved(Image.new("RGB", (1999, 2000)), "PNG")] * 6
    client.post("/v1/recognize", files=upload(*small_files))
    before = process.memory_info().rss
    for _ in range(2):
        for bomb in bombs:
            assert_refused(client.post("/v1/recognize", files=upload(bomb)), 413, "too_many_pixels", "4,000,000 pixels")
        seven = upload(*small_files, stating(1000, 1000))
        assert_refused(client.post("/v1/recognize", files=seven), 413, "too_many_pixels", "24,000,000 pixels in all")
        # 24 million pixels are 72 MB, which are decoded one picture after another.
        assert client.post("/v1/recognize", files=upload(*small_files)).status_code == 200
    assert process.memory_info().rss - before < 40 * MIB


def test_a_client_that_sends_slowly_is_told_so_and_let_go(engine: Engine) -> None:
    head = "POST /v1/recognize/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    with served(http_app(EngineReader(engine), Limits(body_s=0.4), log=no_log)) as url:
        with socket.create_connection(address(url), timeout=20) as slow:
            slow.sendall(head.encode() + b'{"items": [')
            answer = b""
            while received := slow.recv(65536):
                answer += received
        status, _, body = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"]["code"] == "body_too_slow"
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize(("length", "status"), [("4194305", 413), ("-1", 400), ("9" * 5000, 400), ("ten", 400)])
def test_a_length_that_cannot_be_is_refused_before_a_byte_is_read(url: str, length: str, status: int) -> None:
    with socket.create_connection(address(url), timeout=20) as sent:
        sent.sendall(f"POST /v1/recognize HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        assert sent.recv(65536).startswith(f"HTTP/1.1 {status}".encode())


def test_forms_of_very_many_parts_are_refused(client: httpx.Client) -> None:
    many = client.post("/v1/recognize", files=[("frames", ("a", b"x"))] * 1001)
    assert_refused(many, 400, "bad_request", "Too many files")
    nine = client.post("/v1/recognize", files=[("frames", ("a", b"x"))] * 9)
    assert_refused(nine, 413, "too_many_frames", "9 frames; the limit is 8")
    fields = client.post(
        "/v1/recognize", files=[*upload(picture(1)), *((f"f{number}", (None, "x")) for number in range(1001))]
    )
    assert_refused(fields, 400, "bad_request", "Too many fields")


def test_thousands_of_tiny_requests_are_each_answered_with_a_sentence(engine: Engine) -> None:
    app = http_app(EngineReader(engine), Limits(), Guard(rate=Rate(per_second=20, burst=20)), log=no_log)
    bodies = [b"", b"{", b'{"items": []}', b"[" * 500, b'{"items": [{"frames": [""]}]}', b"\xff\xfe"]

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            headers = {"Content-Type": "application/json"}
            found = []
            for start in range(0, 2000, 100):
                asked = (
                    http.post("/v1/recognize/batch", content=bodies[number % len(bodies)], headers=headers)
                    for number in range(start, start + 100)
                )
                found += await asyncio.gather(*asked)
            return found

    answers = asyncio.run(ask())
    statuses = {answer.status_code for answer in answers}
    assert 429 in statuses and statuses <= {200, 400, 422, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) > 1500
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
