"""A bundle behind FastAPI and uvicorn alone: no batches, no limits, no metrics, until the process is interrupted.

python benchmarks/plain_service.py BUNDLE PORT
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from starlette.concurrency import run_in_threadpool

from glyphrun.ensemble_bundle import load_reader
from glyphrun_serve import schemas
from glyphrun_serve.graph import model_card


def service(bundle: Path) -> FastAPI:
    """One route that reads one item."""
    engine, identity = load_reader(bundle), model_card(bundle).identity()
    app = FastAPI()

    @app.post("/v1/recognize")
    async def recognize(frames: list[UploadFile]) -> schemas.Answer:
        began = perf_counter()
        data = [await frame.read() for frame in frames]
        (found,) = await run_in_threadpool(engine.read, [data], explain=True)
        return schemas.answer(found, identity, (perf_counter() - began) * 1e3)

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)  # as a replica of the graph has
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            service(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False
        )
