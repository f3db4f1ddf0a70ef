"""Calls between deployments: what a replica's death, a full queue and a client that has gone mean for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from glyphrun_serve.models import Busy, Lost

ATTEMPTS = 2
BUSY = "more requests are waiting than may wait"
DEATHS = (RayActorError, ObjectLostError, WorkerCrashedError, AioRpcError)


async def answer_of(ask: Callable[[int], Any], died: Callable[[], None] | None = None) -> Any:
    """What a deployment answers; if a replica died over it, or over what it was given, it is asked once more.

    ask: makes the call, told which attempt this is, from 0 on. One that nobody waits for any more is cancelled. Raises Busy if no
    more calls may wait, Lost if the second attempt failed like the first.
    """
    for attempt in range(ATTEMPTS):
        response = ask(attempt)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise Busy(BUSY) from error
        except DeploymentUnavailableError as error:
            raise Lost("it could not be deployed") from error
        except (RayError, RayServeException, AioRpcError) as error:
            if not any(isinstance(cause, DEATHS) for cause in _causes(error)):
                raise
            if died:
                died()
    raise Lost("its replicas died")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: Ray wraps the errors of tasks, and Serve those of what a call was given."""
    while error is not None:
        yield error
        wrapped = getattr(error, "cause", None)
        error = wrapped if isinstance(wrapped, BaseException) else error.__cause__
