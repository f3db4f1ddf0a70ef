"""Applications of a Ray that serves: the champion's, and those of versions beside it, started and awaited."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from glyphrun_serve.app import APPLICATION
from glyphrun_serve.serve_error import ServeError

START_WITHIN_S = 300.0
LOOK_S = 0.25
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)

Say = Callable[[str], None]


def deploy(name: str, graph: serve.Application, route: str | None) -> None:
    """Have Serve start an application, or change the one of this name, and return at once. route: None for handles alone."""
    target = serve.RunTarget(graph, name=name, route_prefix=route, logging_config=QUIET)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def await_running(name: str, say: Say, look: Callable[[], None] = lambda: None) -> None:
    """Until all replicas of an application are ready. look: called again and again meanwhile.

    say: is told once of each thing that a deployment waits for. Raises ServeError if it fails, is removed or takes too long.
    """
    until = monotonic() + START_WITHIN_S
    told = {""}
    while True:
        look()
        found = serve.status().applications.get(name)
        if found is None or found.status == ApplicationStatus.DELETING:
            raise ServeError(f"{name} was removed by another process")
        if found.status == ApplicationStatus.RUNNING:
            return
        if found.status == ApplicationStatus.DEPLOY_FAILED or monotonic() > until:
            parts = found.deployments.items()
            said = "; ".join(f"{part}: {state.message.strip()}" for part, state in parts if state.message)
            raise ServeError(f"{name} did not get ready: {said or found.message.strip() or 'nobody knows why'}")
        # Serve says after half a minute what it waits for, such as resources that no node has.
        for part, state in found.deployments.items():
            words = state.message.strip()
            if words not in told:
                told.add(words)
                say(f"{part} is not ready yet: {words}")
        sleep(LOOK_S)


def settled() -> bool:
    """Whether the champion's replicas are all of one version and answer."""
    return serve.status().applications[APPLICATION].status == ApplicationStatus.RUNNING


def beside() -> list[str]:
    """The applications of challengers."""
    return [name for name in serve.status().applications if name.startswith(f"{APPLICATION}-")]


def replicas(name: str) -> dict[str, int]:
    """How many of each deployment run."""
    found = serve.status().applications.get(name)
    if found is None:
        return {}
    return {
        part: sum(count for kind, count in state.replica_states.items() if kind == "RUNNING")
        for part, state in found.deployments.items()
    }
