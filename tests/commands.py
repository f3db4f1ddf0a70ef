"""``glyphrun`` as it is typed, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

from glyphrun.cli import app

GLYPHRUN = str(Path(sys.executable).parent / "glyphrun")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def glyphrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run([GLYPHRUN, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


RAY = """
import sys
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def shared_ray() -> Iterator[str]:
    """The address of a Ray for commands in this process, which would start one each."""
    # A process shows a token from then on that it has started a Ray itself.
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
    with subprocess.Popen(
        [sys.executable, "-c", RAY], text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        yield started.stdout.readline().strip()


def said(*arguments: str, ray: str | None = None) -> str:
    """What a command prints that does what it is asked; ray: the address of one to use in place of one of its own.

    It runs in this process, for most of a command's time is spent on starting one.
    """
    done = CliRunner().invoke(app, list(arguments), env={"RAY_ADDRESS": ray})
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.stdout


def refusal(*arguments: str) -> str:
    """What a command says that ends with exit code 1 and no traceback, on one line; in this process, too."""
    done = CliRunner().invoke(app, list(arguments), env={"RAY_ADDRESS": None})
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1, (arguments, done.output, done.exception)
    return " ".join(done.output.split())
