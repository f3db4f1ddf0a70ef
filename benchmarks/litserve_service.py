"""A bundle behind LitServe, with batches of its own, until the process is interrupted.

python benchmarks/litserve_service.py BUNDLE PORT
"""

# LitServe reads annotations at run time, so they stay evaluated in this file.

import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import litserve
import torch
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from glyphrun.ensemble_bundle import load_reader
from glyphrun.prediction import Prediction
from glyphrun_serve import schemas
from glyphrun_serve.graph import model_card

MOST = 16  # items of a batch, as in the graph
BATCH_TIMEOUT_S = 0.0  # takes what waits, and looks again without a pause: of 0, 2 and 10 ms the fastest


class BundleAPI(litserve.LitAPI):
    """Reads batches of items."""

    def __init__(self, bundle: Path, **batching: Any) -> None:
        super().__init__(**batching)
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Load the bundle, in the process that reads."""
        torch.set_num_threads(1)  # as a replica of the graph has
        self._engine, self._identity = load_reader(self._bundle), model_card(self._bundle).identity()

    def decode_request(self, request: Request) -> list[bytes]:
        """The encoded frames of one form, which is what a request with a form is by the time it comes here."""
        frames = cast(FormData, request).getlist("frames")
        return [frame.file.read() for frame in frames if isinstance(frame, UploadFile)]

    def batch(self, inputs: Sequence[list[bytes]]) -> list[list[bytes]]:
        """The engine takes items as they are."""
        return list(inputs)

    def predict(self, x: list[list[bytes]]) -> list[tuple[Prediction, float]]:
        """Each reading with the milliseconds of its batch."""
        began = perf_counter()
        found = self._engine.read(x, explain=True)
        return [(one, (perf_counter() - began) * 1e3) for one in found]

    def unbatch(self, output: list[tuple[Prediction, float]]) -> list[tuple[Prediction, float]]:
        """They are apart already."""
        return output

    def encode_response(self, output: tuple[Prediction, float]) -> dict[str, Any]:
        """What the graph answers."""
        return schemas.answer(output[0], self._identity, output[1]).model_dump()


if __name__ == "__main__":
    api = BundleAPI(Path(sys.argv[1]), max_batch_size=MOST, batch_timeout=BATCH_TIMEOUT_S, api_path="/v1/recognize")
    litserve.LitServer(api, accelerator="cpu", devices=1).run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )
