"""The serving graph of a bundle, and how to start and stop it on this machine."""

# Serve reads the annotation of build_app at run time, so annotations stay evaluated in this file.

import logging
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from shutil import rmtree
from time import monotonic, sleep
from typing import Annotated, Self

import httpx
import ray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from glyphrun.device import Precision
from glyphrun.target import LatencyBudget
from glyphrun_serve.access import Access, Guard
from glyphrun_serve.batching import Batching
from glyphrun_serve.graph import GRACE_S, Options, Plant, Resources, challenger_graph, graph, model_card
from glyphrun_serve.limits import Limits
from glyphrun_serve.local_ray import folder_for_haproxy, serve_variables, with_variables
from glyphrun_serve.ports import free_port
from glyphrun_serve.release_root import Terms
from glyphrun_serve.sample_log import SampleLog
from glyphrun_serve.schemas import ColdStart, Ready
from glyphrun_serve.serve_error import ServeError

APPLICATION = "glyphrun"
READY_WITHIN_S = 120.0


def _adapter_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"{name!r} cannot be an adapter's name: use up to 64 letters, digits, dashes and underscores")
    return name


AdapterName = Annotated[str, AfterValidator(_adapter_name)]


class ServeSettings(BaseModel):
    """The arguments of the application in a Serve config; budget is what promotions to it are measured against.

    preprocess: whether images are decoded in a deployment of its own, which scales by itself, or in the gateway, which on
    few processors is faster by a hop. replicas, cpus, gpus: of the recognizer, and what each replica has; members of an
    ensemble that vote have as many replicas each and share the rest in equal parts. What else Serve can be told of a
    deployment, such as how it scales, stands under ``deployments`` of the config: gateway, preprocess, and recognizer or
    recognizer-MEMBER. log_samples: where requests that are worth a label are kept, which none are without it. adapters:
    folders of LoRA adapters trained on the bundle, by the names under which they are asked for (NAME:ADAPTER);
    adapters_mb: how many MiB of them each replica holds at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    limits: Limits = Limits()
    access: Access = Access()
    batching: Batching = Batching()
    precision: Precision | None = None
    preprocess: bool = False
    replicas: int = Field(default=1, gt=0)
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    budget: LatencyBudget | None = None
    log_samples: SampleLog | None = None
    adapters: dict[AdapterName, Path] = {}
    adapters_mb: float = Field(default=256, gt=0)

    @property
    def resources(self) -> Resources:
        return Resources(self.replicas, self.cpus, self.gpus, self.preprocess)


@dataclass(frozen=True)
class Server:
    """A running server; leaving its `with` block stops it.

    started: how long a replica of each deployment took to start, ready_s: how long all of it did. files: a folder that goes
    with it.
    """

    url: str
    owns_ray: bool
    started: Mapping[str, ColdStart] = field(default_factory=dict)
    ready_s: float = 0.0
    files: Path | None = None

    def stop(self) -> None:
        # Serve kills its controller in the middle of the farewell, which Ray then prints as an error of nobody's.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            serve.shutdown()
            if self.owns_ray:
                ray.shutdown()
        if self.files is not None:
            rmtree(self.files, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def build_app(settings: ServeSettings) -> serve.Application:
    """The graph of a bundle. A Serve config names it as import_path.

    Raises the errors of a bundle or adapter that cannot be read before anything is deployed.
    """
    return application(settings, None)


def application(
    settings: ServeSettings, options: Options | None, guard: Guard | None = None, *, in_place: bool = False
) -> serve.Application:
    """The same with the options that a Serve config has for each of its deployments, None where Serve itself has read them.

    guard: in place of what settings say of who may ask. in_place: its recognizers take the place of others that nobody asks
    any more. Raises DatasetError if the folder for samples holds something else.
    """
    log_samples = settings.log_samples
    if log_samples is not None:
        from glyphrun.data.rolling import claim_folder

        # The gateway's process works in another folder.
        log_samples = log_samples.model_copy(update={"folder": log_samples.folder.absolute()})
        claim_folder(log_samples.folder)
    settings = _absolute(settings.model_copy(update={"log_samples": log_samples}))
    guard = guard or settings.access.guard()
    terms = None if options is None else _terms(settings, options, guard)
    plant = replace(_plant(settings, options or {}), surge=not in_place)
    return graph(settings.bundle, plant, guard=guard, terms=terms, log_samples=log_samples)


def challenger(settings: ServeSettings, options: Options, guard: Guard) -> serve.Application:
    """The same without what takes requests, for the gateway of another release to ask."""
    settings = _absolute(settings)
    return challenger_graph(settings.bundle, _plant(settings, options), _terms(settings, options, guard))


def _absolute(settings: ServeSettings) -> ServeSettings:
    """Replicas work in other folders, and who replaces the release in yet another."""
    adapters = {name: folder.resolve() for name, folder in settings.adapters.items()}
    return settings.model_copy(update={"bundle": settings.bundle.resolve(), "adapters": adapters})


def _terms(settings: ServeSettings, options: Options, guard: Guard) -> Terms:
    return Terms(model_card(settings.bundle), guard, settings.model_dump(mode="json"), options)


def _plant(settings: ServeSettings, options: Options) -> Plant:
    return Plant(
        settings.limits,
        settings.batching,
        settings.precision,
        settings.resources,
        options,
        adapters=settings.adapters,
        adapter_bytes=int(settings.adapters_mb * 2**20),
    )


def run(
    settings: ServeSettings, *, host: str = "127.0.0.1", port: int = 8000, options: Options | None = None
) -> Server:
    """Serve a bundle on this machine and return once it is ready; port 0 takes any free port.

    options: what a Serve config says of its deployments, by their names.

    A Ray that runs in this process is used, else a local one is started and stopped again with the server. Raises
    ServeError if the port is taken, if Serve already runs or if the model does not get ready; TokensError if others could
    reach the host and there are no tokens.
    """
    settings.access.check_host(host)
    began = monotonic()
    port = free_port(host, port)
    served = application(settings, options or {})
    # Leaving a cluster that is someone else's would leave the application on it.
    owns_ray = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    files = folder_for_haproxy() if owns_ray and not settings.access.by_address(host) else None
    if not ray.is_initialized():
        variables = serve_variables(os.environ, haproxy=files) if owns_ray else {}
        with with_variables(variables):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    server = Server(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", owns_ray, files=files)
    if serve.status().proxies:
        if owns_ray:
            ray.shutdown()
        raise ServeError("Serve already runs on this Ray, on a port of its own; stop it with `serve shutdown` first.")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        deadline = settings.limits.answer_s + GRACE_S
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=host, port=port, request_timeout_s=deadline),
            logging_config=quiet,
        )
        serve.run(served, name=APPLICATION, route_prefix="/", logging_config=quiet)
        started = _await_ready(server.url)
    except (RuntimeError, TimeoutError) as error:
        reason = _deployment_messages() or str(error)
        server.stop()
        raise ServeError(f"The model of {settings.bundle} did not get ready: {reason}") from error
    except BaseException:
        server.stop()
        raise
    return replace(server, started=started, ready_s=monotonic() - began)


def _deployment_messages() -> str:
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments.values() if application else ()
    return "\n".join(deployment.message for deployment in deployments if deployment.message)


def _await_ready(url: str) -> dict[str, ColdStart]:
    deadline = monotonic() + READY_WITHIN_S
    while True:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
            if answer.status_code == 200:
                return Ready.model_validate_json(answer.content).started
        except httpx.TransportError:
            pass
        if monotonic() > deadline:
            raise TimeoutError(f"{url}/readyz did not say ready within {READY_WITHIN_S:g} s")
        sleep(0.1)
