"""One bundle served on this machine in three ways, one after another, under the same load.

    pip install -e '.[bench]'
    python benchmarks/serving.py
    python benchmarks/serving.py --recognizer query-digits
    python benchmarks/serving.py --serve-proxy  # Serve's own proxy in the place of HAProxy

The Serve graph, a plain FastAPI and uvicorn service that reads items one by one in threads, and LitServe with its own batches:
the same engine on one thread, the same form, the same JSON. Each is asked by 1, 16 and 64 clients, each of whom sends the next
tracklet of 8 frames when the last is answered; what comes first is not measured. All three must read every tracklet the same.
Processor time is that of a server's processes together; with Ray that includes Ray's own, which are told apart. Aims: p50 at
most 8 ms over FastAPI's for 1 client; for 64 at least LitServe's requests/s with a p99 no worse.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import torch
from material import random_recognizer, save_random_bundle
from measure import CONFIDENCE_APART, command_line
from PIL import Image

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.images import encode_image

HERE = Path(__file__).parent
SERVICES = {"glyphrun": "graph_service.py", "fastapi": "plain_service.py", "litserve": "litserve_service.py"}
FRAMES, CROP = 8, (96, 48)  # of a tracklet; height and width
BOUNDARY = "----tracklet"
ROUTE, FORM = "/v1/recognize", f"multipart/form-data; boundary={BOUNDARY}"
START_S, STOP_S = 120.0, 30.0
# Beginnings of the command lines of Ray's processes.
PARTS = {
    "ray::ServeReplica:glyphrun:gateway": "gateway",
    "ray::ServeReplica:glyphrun:recognizer": "recognizer",
    "ray::ProxyActor": "proxy",
    "ray::HAProxyManager": "proxy",
    "ray::ServeController": "controller",
}


@dataclass(frozen=True)
class Measured:
    """What one service did for so many clients; cpu: milliseconds of processor time for a request, by process."""

    p50: float
    p99: float
    rate: float
    cpu: Mapping[str, float]
    own: float

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {spent:.1f}" for part, spent in self.cpu.items()) if len(self.cpu) > 1 else ""
        return (
            f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, {self.rate:.1f} requests/s, all {sum(self.cpu.values()):.1f} "
            f"CPU ms a request{f' ({parts})' if parts else ''}; the clients' {self.own:.2f}"
        )


def main() -> None:
    """Print the figures of every service and number of clients, and the two comparisons."""
    asked = arguments()
    if "litserve" in asked.ways and find_spec("litserve") is None:
        raise SystemExit(
            "LitServe is not installed: pip install -e '.[bench]', or leave it out with --ways glyphrun fastapi"
        )
    environment = {**os.environ, **({"RAY_SERVE_ENABLE_HA_PROXY": "0"} if asked.serve_proxy else {})}
    measured: dict[tuple[str, int], Measured] = {}
    readings: dict[str, list[tuple[str, float]]] = {}
    with TemporaryDirectory() as folder:
        bundle, questions = Path(folder) / "bundle", Path(folder) / "questions"
        save_bundle_to_serve(bundle, asked.recognizer, asked.seed)
        bodies = write_questions(questions, asked.tracklets, asked.seed)
        for way in asked.ways:
            with service(way, bundle, asked.port, environment) as process:
                readings[way] = first_readings(asked.port, bodies)
                expect_readings(questions, readings[way])
                for clients in asked.clients:
                    found = measured[way, clients] = under_load(process, asked.port, clients, asked.seconds, questions)
                    print(f"{asked.recognizer}, {way}, {clients} clients: {found}", flush=True)
    same_readings(readings)
    compare(measured)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = command_line(__doc__)
    parser.add_argument("--recognizer", default="query-digits-nano", help="of the zoo (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--tracklets", type=int, default=32, help="different ones (default: %(default)s)")
    parser.add_argument("--ways", choices=SERVICES, nargs="+", default=list(SERVICES))
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--serve-proxy", action="store_true", help="in the place of HAProxy")
    return parser.parse_args()


def save_bundle_to_serve(folder: Path, name: str, seed: int) -> None:
    """A recognizer that has learned nothing, but reads different images differently: its weights are larger."""
    recognizer = random_recognizer(name, seed)
    with torch.no_grad():
        for parameter in recognizer.parameters():
            parameter.mul_(3)
    save_random_bundle(folder, recognizer, DecodeSettings(vote_floor=0.0))


def write_questions(folder: Path, count: int, seed: int) -> list[bytes]:
    """Whole requests in files, as `load.py` sends them; returns their bodies."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    bodies = []
    for number in range(count):
        body = form([crop(rng) for _ in range(FRAMES)])
        head = (
            f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        (folder / f"{number:04d}.http").write_bytes(head.encode() + body)
        bodies.append(body)
    return bodies


def crop(rng: np.random.Generator) -> bytes:
    """A blurred picture as a JPEG of about the bytes that a player's crop has."""
    height, width = CROP
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return encode_image(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), "JPEG")


def form(frames: Sequence[bytes]) -> bytes:
    """The body of a form with one field `frames` for each."""
    parts = io.BytesIO()
    for number, data in enumerate(frames):
        disposition = f'form-data; name="frames"; filename="{number}.jpg"'
        parts.write(f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode())
        parts.write(data + b"\r\n")
    parts.write(f"--{BOUNDARY}--\r\n".encode())
    return parts.getvalue()


@contextmanager
def service(way: str, bundle: Path, port: int, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """The process that serves, from its first answer on; none of those that it has started outlives it."""
    command = [sys.executable, str(HERE / SERVICES[way]), str(bundle), str(port)]
    with subprocess.Popen(command, env=environment) as started:
        process = psutil.Process(started.pid)
        try:
            yield process
        finally:
            others = process.children(recursive=True) if process.is_running() else []
            started.send_signal(signal.SIGINT)
            try:
                started.wait(STOP_S)
            except subprocess.TimeoutExpired:
                started.kill()
            for left in psutil.wait_procs(others, timeout=5)[1]:
                left.kill()


def first_readings(port: int, bodies: Sequence[bytes]) -> list[tuple[str, float]]:
    """What each tracklet reads, asked one by one once there are answers."""
    end = monotonic() + START_S
    while True:
        try:
            return [(answer["text"], answer["confidence"]) for answer in (ask(port, body) for body in bodies)]
        except (OSError, http.client.HTTPException) as error:
            if monotonic() > end:
                raise SystemExit(f"there was no answer within {START_S:g} s: {error!r}") from error
            sleep(0.2)


def ask(port: int, body: bytes) -> dict[str, Any]:
    """One answer. Raises OSError or HTTPException if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", ROUTE, body, {"Content-Type": FORM})
        response = connection.getresponse()
        said = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status} {said[:200]!r}")
    answer: dict[str, Any] = json.loads(said)
    return answer


def expect_readings(folder: Path, readings: Sequence[tuple[str, float]]) -> None:
    """Tell the clients how each answer has to begin."""
    for number, (text, _) in enumerate(readings):
        (folder / f"{number:04d}.begin").write_text(f'{{"text":"{text}",')


def same_readings(readings: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    """Ends the program unless all read the same, with the same confidences but for rounding."""
    (one, expected), *others = readings.items()
    for other, found in others:
        for number, (said, expects) in enumerate(zip(found, expected, strict=True)):
            if said[0] != expects[0] or abs(said[1] - expects[1]) > CONFIDENCE_APART:
                raise SystemExit(f"tracklet {number} reads {expects} with {one} and {said} with {other}")
    print(
        f"{len(expected)} tracklets read the same in every way, {len({text for text, _ in expected})} different texts"
    )


def under_load(process: psutil.Process, port: int, clients: int, seconds: float, questions: Path) -> Measured:
    """Figures of a service. Ends the program if a request failed."""
    command = [sys.executable, str(HERE / "load.py"), str(port), str(clients), str(seconds), str(questions)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdin is not None and load.stdout is not None
        load.stdout.readline()
        before = processor_seconds(process)
        load.stdin.write("\n")
        load.stdin.flush()
        told = json.loads(load.stdout.readline())
        after = processor_seconds(process)
    if told["failed"]:
        raise SystemExit(f"{told['failed']} requests of {clients} clients failed, the first with {told['failure']}")
    count = len(told["milliseconds"])
    spent: defaultdict[str, float] = defaultdict(float)
    for pid, (part, used) in after.items():
        spent[part] += (used - before.get(pid, (part, 0.0))[1]) * 1e3 / count
    p50, p99 = np.percentile(told["milliseconds"], [50, 99])
    return Measured(float(p50), float(p99), count / told["seconds"], dict(spent), told["own_s"] * 1e3 / count)


def processor_seconds(process: psutil.Process) -> dict[int, tuple[str, float]]:
    """Of a process and all below it, by number: which part of the server it is, and what it has used so far."""
    found = {}
    for one in (process, *process.children(recursive=True)):
        try:
            used, line = one.cpu_times(), " ".join(one.cmdline())
        except psutil.NoSuchProcess:
            continue
        found[one.pid] = (part_of(line), used.user + used.system)
    return found


def part_of(line: str) -> str:
    """What a process is in a server, by its command line."""
    for beginning, part in PARTS.items():
        if line.startswith(beginning):
            return part
    if "haproxy" in line:
        return "proxy"
    return "Ray itself" if "ray" in line.split("/") or line.startswith("ray::") else "main"


def compare(measured: Mapping[tuple[str, int], Measured]) -> None:
    """The two figures that are asked for, where they were measured."""
    if {("glyphrun", 1), ("fastapi", 1)} <= set(measured):
        apart = measured["glyphrun", 1].p50 - measured["fastapi", 1].p50
        print(f"1 client: p50 {apart:+.1f} ms against FastAPI (aim: at most +8)")
    if {("glyphrun", 64), ("litserve", 64)} <= set(measured):
        ours, theirs = measured["glyphrun", 64], measured["litserve", 64]
        print(
            f"64 clients: {ours.rate / theirs.rate:.2f} times LitServe's requests/s (aim: at least 1), "
            f"p99 {ours.p99:.0f} ms against {theirs.p99:.0f} ms"
        )


if __name__ == "__main__":
    main()
