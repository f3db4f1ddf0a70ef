"""What a job runs in needs no secret, and a cluster that does not answer is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import ray

from glyphrun.jobs import JobError, connect, follow, runtime_env, start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_other_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_the_repository_is_uploaded_as_code_alone_and_with_no_value_of_the_environment():
    environment = runtime_env(ROOT)
    assert set(environment) == {"working_dir", "py_modules", "excludes"}
    assert environment["working_dir"] == str(ROOT)
    assert {Path(module).name for module in environment["py_modules"]} == {"glyphrun", "glyphrun_serve"}
    for module in environment["py_modules"]:
        assert (Path(module) / "__init__.py").exists()
    assert {"runs/", ".git/", ".venv/"} <= set(environment["excludes"])


def test_a_folder_without_a_runtime_env_is_uploaded_as_it_is_and_a_broken_one_is_refused(tmp_path):
    assert runtime_env(tmp_path) == {"working_dir": str(tmp_path)}
    file = tmp_path / "runtime-env.yaml"
    for text, said in [("- platform", "holds no keys"), ("py_modules: [", "cannot be read")]:
        file.write_text(text)
        with pytest.raises(JobError, match=said):
            runtime_env(tmp_path)


class Versions(BaseHTTPRequestHandler):
    """Says which Ray it is, and nothing of jobs."""

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        self.send_response(200 if known else 500)
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": ray.__version__}).encode() if known else b"Traceback\nbroken\n")

    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"Traceback\nValueError: nothing runs here\n")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Versions) as started:
        thread = Thread(target=started.serve_forever, daemon=True)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def test_a_server_that_takes_no_job_or_is_gone_is_said_in_one_sentence(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}"
    client = connect(address)
    (tmp_path / "runtime-env.yaml").write_text("working_dir: unused")
    with pytest.raises(JobError, match="^the cluster takes no job: [^\n]*$"):
        start(client, ["true"], tmp_path)
    with pytest.raises(JobError, match=f"may go on: `ray job status raysubmit_1 --address {address}` tells"):
        follow(client, "raysubmit_1", print)
    server.shutdown()
    server.server_close()
    for lost in (lambda: follow(client, "raysubmit_1", print), lambda: start(client, ["true"], tmp_path)):
        with pytest.raises(JobError, match="^the c[^\n]*$"):
            lost()
    with pytest.raises(JobError, match=f"^no job server answers at {address}: [^\n]*$"):
        connect(address)
