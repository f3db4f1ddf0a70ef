"""Clients who ask a server one question after another, while a test does something to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import httpx

from serving import upload


@dataclass
class Load:
    """What the clients were answered."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def after(self, count: int) -> dict[str, Any]:
        """The last answer, once there are so many more."""
        target, end = len(self.answers) + count, monotonic() + 60
        while len(self.answers) < target:
            assert monotonic() < end, f"answers stay away: {self.failures}"
            sleep(0.02)
        return self.answers[-1]

    def until(self, degraded: bool) -> None:
        end = monotonic() + 60
        while self.after(1)["degraded"] != degraded:
            assert monotonic() < end, self.answers[-1]


@contextmanager
def load(url: str, items: Sequence[Sequence[bytes]], pause_s: float = 0.05) -> Iterator[Load]:
    """A client for each item, which sends its frames again and again. Answers say how many frames they were sent."""
    made, stop = Load(), threading.Event()

    def ask(frames: Sequence[bytes]) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while not stop.wait(pause_s):
                try:
                    response = client.post("/v1/recognize?explain=false", files=upload(*frames))
                except httpx.TransportError as error:
                    made.failures.append(repr(error))
                    continue
                if response.status_code == 200:
                    made.answers.append({**response.json(), "frames": len(frames)})
                else:
                    made.failures.append(response.text)

    threads = [threading.Thread(target=ask, args=(frames,)) for frames in items]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        stop.set()
        for thread in threads:
            thread.join()
