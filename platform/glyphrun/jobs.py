"""Commands that run on a cluster as jobs of Ray: the working folder is uploaded, and what the job prints comes back."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

RUNTIME_ENV = "runtime-env.yaml"
POLL_S = 0.5
READY_WITHIN_S = 60


class JobError(RuntimeError):
    """A job that cannot be handed over, or whose end is not known; the message says what to do."""


def connect(address: str | None) -> JobSubmissionClient:
    """The job server of a cluster: its dashboard's address, or without one a Ray of this machine. Raises JobError.

    A server that asks for Ray's token is given the one that Ray itself would send; no other server sees it.
    """
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        token = _token()
        if token is None:
            raise JobError(
                f"{address or 'the local Ray'} asks for a token: set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on "
                "its head"
            ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from None
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from None


def runtime_env(folder: Path) -> dict[str, Any]:
    """What a job of this folder runs in: its runtime-env.yaml if there is one, with the folder itself as upload.

    Raises JobError for a file that is no mapping.
    """
    file = folder / RUNTIME_ENV
    declared: Any = {}
    if file.exists():
        try:
            declared = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise JobError(f"{file} cannot be read: {error}") from None
    if not isinstance(declared, dict):
        raise JobError(f"{file} holds no keys: it starts with py_modules: or env_vars:")
    modules = [str(folder / module) if "://" not in module else module for module in declared.get("py_modules", [])]
    return {**declared, "working_dir": str(folder), **({"py_modules": modules} if modules else {})}


def start(client: JobSubmissionClient, command: Sequence[str], folder: Path) -> str:
    """Upload a folder and run a command in it; the job's id. Raises JobError if the cluster takes none."""
    environment = runtime_env(folder)
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            return str(client.submit_job(entrypoint=shlex.join(command), runtime_env=environment))
        except (OSError, RuntimeError, ValueError) as error:
            # The job server of a head answers some seconds before what runs its jobs does.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise JobError(f"the cluster takes no job: {_last_line(error)}") from None
            time.sleep(POLL_S)


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> int:
    """Pass on what a job prints until it ends; its exit status, 1 for one that never started or was stopped.

    Raises JobError if the cluster is lost on the way.
    """

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            show(lines)

    try:
        asyncio.run(tail())
        while not (info := client.get_job_info(job)).status.is_terminal():
            time.sleep(POLL_S)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:  # requests' own errors are OSError
        raise JobError(
            f"the connection to the cluster was lost, and job {job} may go on: `ray job status {job} --address "
            f"{client.get_address()}` tells ({_last_line(error)})"
        ) from None
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.FAILED and not info.driver_exit_code and info.message:
        show(f"{info.message}\n")
    return int(info.driver_exit_code or 1)


def _unreachable(address: str | None, error: Exception) -> JobError:
    where = address or "a Ray on this machine"
    return JobError(
        f"no job server answers at {where}: start one with `ray start --head`, or reach a cluster's with "
        f"`ray dashboard cluster.yaml` and --address http://127.0.0.1:8265 ({_last_line(error)})"
    )


def _last_line(error: Exception) -> str:
    """What an error says without the traceback that a server may have sent along."""
    said = str(error).rstrip(" .\n")
    return said.splitlines()[-1] if said else type(error).__name__


def _token() -> str | None:
    """Ray's own order: the variable, the file that a variable names, the file in the home folder."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text(encoding="utf-8").strip() if file.exists() else None
