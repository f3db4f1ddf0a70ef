"""Clients who ask one question after another over kept connections, in a process that imports next to nothing.

    python benchmarks/load.py PORT CLIENTS SECONDS FOLDER

FOLDER holds whole HTTP requests, each NUMBER.http with the bytes that its answer must begin with in NUMBER.begin. Asks for a
fifth of the time first, says «warm», waits for a line, and then prints as JSON the milliseconds of every answer, the seconds
they took together, how many requests failed, what the first failure was, and its own processor time.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time

Question = tuple[bytes, bytes]
WARM_UP = 0.2


@dataclass
class Told:
    """What a server answered."""

    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    failed: int = 0
    failure: str = ""
    own_s: float = 0.0


def main() -> None:
    """Warm the server up, wait, and measure."""
    port, clients, seconds, folder = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    asked = [(path.read_bytes(), path.with_suffix(".begin").read_bytes()) for path in sorted(folder.glob("*.http"))]
    asyncio.run(load(port, clients, seconds * WARM_UP, asked))
    print("warm", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(asyncio.run(load(port, clients, seconds, asked)))))


async def load(port: int, clients: int, seconds: float, asked: list[Question]) -> Told:
    """So many clients until the time is over; requests that are under way then are still answered and counted."""
    told, questions = Told(), cycle(asked)
    started, own = perf_counter(), process_time()
    await asyncio.gather(*(client(port, started + seconds, questions, told) for _ in range(clients)))
    told.seconds, told.own_s = perf_counter() - started, process_time() - own
    return told


async def client(port: int, end: float, questions: Iterator[Question], told: Told) -> None:
    """One that asks again as soon as it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := perf_counter()) < end:
        request, begin = next(questions)
        try:
            writer.write(request)
            status, body = await answer(reader)
        except (OSError, EOFError, ValueError) as error:
            told.failed, told.failure = told.failed + 1, told.failure or repr(error)
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        told.milliseconds.append((perf_counter() - began) * 1e3)
        if status != b"200" or not body.startswith(begin):
            told.failed, told.failure = told.failed + 1, told.failure or f"{status!r} {body[:200]!r}"
    writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status and body of an answer that states its length. Raises ValueError for another."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    return head[9:12], await reader.readexactly(int(length))


if __name__ == "__main__":
    main()
