"""Whatever is sent to the routes that the OpenAPI document describes, the server does not fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from clips import save_clip
from glyphrun.bundle import load_engine
from glyphrun_serve.limits import Limits
from glyphrun_serve.routes import http_app
from local_app import EngineReader, no_log, served
from serving import in_base64, picture, save_untrained

REQUESTS = 60  # of each operation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    engine = load_engine(save_untrained(folder / "untrained"), precision="float32")
    limits = Limits(body_bytes=200_000, items=4, frames=4, pixels=100_000, request_pixels=300_000)
    with (
        served(http_app(EngineReader(engine), limits, log=no_log)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client


class Requests:
    """Requests of an operation as its schema has them, and ones that are broken in some place."""

    def __init__(self, seed: int, document: dict[str, Any], clip: bytes) -> None:
        self.rng = np.random.default_rng(seed)
        self.document = document
        self.clip = clip

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def text(self) -> str:
        codes = self.rng.choice([*range(32, 127), 0x0, 0x1F4A9, 0x202E, 0xE9, 0xFFFF], self.rng.integers(0, 30))
        return "".join(map(chr, codes))

    def value(self, depth: int = 0) -> Any:
        """Any JSON."""
        kinds = [None, True, -1, 10**30, 1e308, self.text(), "NaN"]
        if depth < 3:
            kinds += [[self.value(depth + 1)], {self.text(): self.value(depth + 1)}]
        return self.one_of(*kinds)

    def of(self, schema: dict[str, Any]) -> Any:
        """JSON of a schema, in one place in eight something else."""
        if self.rng.random() < 1 / 8:
            return self.value()
        if "$ref" in schema:
            return self.of(self.document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
        if schema.get("type") == "object":
            return {key: self.of(part) for key, part in schema.get("properties", {}).items() if self.rng.random() < 0.9}
        if schema.get("type") == "array":
            return [self.of(schema["items"]) for _ in range(self.rng.integers(0, 6))]
        return self.one_of(*in_base64(picture(1))["frames"], self.text())

    def bytes(self, name: str) -> bytes:
        """A picture or a clip, often what the field is for; whole, cut short, changed in places, or neither."""
        kinds = [picture(int(self.rng.integers(9))), self.clip]
        data = bytearray(kinds[(name == "clip") ^ (self.rng.random() < 0.1)])
        if self.rng.random() < 0.2:
            for place in self.rng.integers(0, len(data), 9):
                data[place] = self.rng.integers(256)
        if self.rng.random() < 0.1:
            del data[int(self.rng.integers(len(data))) :]
        return bytes(data) if self.rng.random() < 0.9 else self.text().encode("utf-8", "replace")

    def form(self, schema: dict[str, Any]) -> list[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = []
        for name in schema["properties"]:
            for _ in range(self.rng.integers(0, 4)):
                boxes = [{"tracklet": "a", "frame": int(self.rng.integers(-1, 12)), "box": [0, 0, 9, self.value(3)]}]
                field = self.one_of(self.text(), json.dumps(boxes), json.dumps(self.value()))
                whole = name != "boxes" or self.rng.random() < 0.1
                parts.append((name, (self.text(), self.bytes(name)) if whole else (None, field)))
        return parts

    def request(self, method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {"method": method.upper(), "url": path, "headers": {}}
        made["params"] = {
            parameter["name"]: self.one_of("true", "0", self.text())
            for parameter in operation.get("parameters", ())
            if self.rng.random() < 0.2
        }
        if self.rng.random() < 0.2:
            made["headers"]["Idempotency-Key"] = self.one_of("a", "b", "c" * 300)
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            schema = content["schema"]
            if "$ref" in schema:
                schema = self.document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            if kind == "multipart/form-data" and self.rng.random() < 0.9:
                made["files"] = self.form(schema) or None
            else:
                made["content"] = json.dumps(self.of(schema)).encode()[: self.one_of(None, None, None, 50)]
                made["headers"]["Content-Type"] = self.one_of(kind, kind, kind, "text/plain", "application/xml")
        return made


def test_no_request_makes_the_server_fail(client: httpx.Client, folder: Path) -> None:
    document = client.get("/openapi.json").json()
    requests = Requests(0, document, save_clip(folder / "clip.avi", 10, size=(32, 32)).read_bytes())
    answered: dict[str, set[int]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for _ in range(REQUESTS if "requestBody" in operation else 3):
                request = requests.request(method, path, operation)
                response = client.request(**request)
                assert response.status_code < 500, (request, response.text)
                if response.status_code != 200:
                    error = response.json()["error"]
                    assert error["code"] and error["message"].endswith("."), (request, response.text)
                answered.setdefault(path, set()).add(response.status_code)
    # They are broken in some places alone: each route also has requests that it answers.
    assert all(200 in statuses for statuses in answered.values()), answered
    assert all(answered[path] & {400, 413, 422} for path in answered if path.startswith("/v1/re")), answered
    assert {"/v1/recognize", "/v1/recognize/batch", "/v1/embed", "/v1/video", "/v1/models", "/metrics"} <= set(answered)


def test_schemathesis_finds_no_server_error(client: httpx.Client) -> None:
    """What is allowed by the description alone: no picture is among it, which the requests above have."""
    statuses: dict[str, set[int]] = {}
    for found in schemathesis.openapi.from_url(f"{client.base_url}/openapi.json").get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call()
            assert response.status_code < 500, response.text
            statuses.setdefault(case.operation.label, set()).add(response.status_code)

        check()
    assert len(statuses) == 8
    assert {200, 422} <= statuses["POST /v1/recognize/batch"] and statuses["GET /v1/models"] == {200}
