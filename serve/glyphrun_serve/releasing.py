"""How a running server is given another version: beside the one it has at first, then in its place. No request fails."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal
from uuid import uuid4

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from glyphrun.bundle import parse_manifest
from glyphrun_serve.announced import AUTH, Announcement
from glyphrun_serve.app import APPLICATION, ServeSettings, application, challenger
from glyphrun_serve.applications import LOOK_S, Say, await_running, beside, deploy, replicas
from glyphrun_serve.board_actor import board_for_release, known_board
from glyphrun_serve.comparison import Comparison
from glyphrun_serve.graph import GATEWAY, GRACE_S, RECOGNIZER, Options
from glyphrun_serve.release_board import Status
from glyphrun_serve.release_plan import Mode, Plan, Table
from glyphrun_serve.release_root import Terms
from glyphrun_serve.serve_error import ServeError
from glyphrun_serve.verdict import Bounds

CALL_S, CONNECT_S = 10.0, 5.0
# In which all gateways have told a board that was started again what it said before.
HEARD_S = 5.0


@dataclass(frozen=True)
class Running:
    """A server, and what it serves a model with."""

    terms: Terms
    settings: ServeSettings
    options: Options

    @property
    def name(self) -> str:
        return self.terms.card.name

    @property
    def version(self) -> str:
        return self.terms.card.version


@contextmanager
def connected(server: Announcement) -> Iterator[None]:
    """With the Ray of a server, or that of this process if it has one. Raises ServeError if there is none."""
    if ray.is_initialized():
        yield
        return
    _expect_listener(server.address)
    try:
        ray.init(address=server.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        hint = "" if os.environ.get(AUTH) else f"; if it asks for a token, set {AUTH}=token"
        raise ServeError(f"There is no Ray to be reached at {server.address}: {error}{hint}") from None
    # It warns of every gateway that is busy for a tenth of a second.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _expect_listener(address: str) -> None:
    """Raises ServeError where nothing listens at HOST:PORT, for which Ray would look for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # one of Ray's other forms of an address
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        message = f"There is no Ray to be reached at {address} ({error}): name the one of the server with --address"
        raise ServeError(message) from None


def running(chosen: tuple[ServeSettings, Options] | None = None) -> Running:
    """The server of this Ray. chosen: settings and options in place of those that it was started with.

    Raises ServeError if there is none, or if nobody knows what it was started with.
    """
    try:
        terms = _terms(APPLICATION)
    except (RayServeException, TimeoutError) as error:
        raise ServeError(f"No server answers on this Ray: start one with `glyphrun serve NAME` ({error})") from None
    if chosen is not None:
        return Running(terms, *chosen)
    if terms.settings is None:
        raise ServeError(
            "The server was started by a Serve config, which only that file still knows: give it as --config"
        )
    return Running(terms, ServeSettings.model_validate(terms.settings), terms.options)


def under_way() -> Plan | None:
    """The release that has begun and not ended."""
    board = known_board()
    return _heard(board).table.plan if board is not None else None


def begin(
    server: Running, bundle: Path, mode: Mode, percent: float, bounds: Bounds, say: Say, *, afresh: bool = False
) -> Any:
    """A canary or a shadow of a bundle beside the champion; the board that compares them, and may have given it up already.

    One of this version that is under way goes on as what is wanted now, unless afresh. Raises ServeError while the champion
    is replaced, if what was to go on has just been given up, or if the bundle does not get ready, of which nothing is left
    then and which the champion has not noticed.
    """
    version, plan = _version(bundle), under_way()
    if plan is not None and plan.mode == "all":  # its replicas may be half of one version and half of another
        raise ServeError(
            f"The champion is being replaced by version {plan.version}, or that has broken off: finish it with "
            f"`glyphrun deploy {server.name}@{plan.version}` first"
        )
    goes_on = not afresh and plan is not None and plan.version == version
    name = plan.application if plan is not None and goes_on else _start_beside(server, bundle, say)
    board = board_for_release()
    try:
        _post(board, Plan(name, version, mode, percent, bounds), server, instead_of=plan if goes_on else None)
    except BaseException:
        with suppress(ServeError, RayError):
            end(server, lambda _: None)
        raise
    return board


def end(server: Running, say: Say) -> bool:
    """End the release that is under way, if any: the champion alone reads. Says whether there was one."""
    board, left, plan = known_board(), beside(), None
    if board is not None:
        status = _heard(board)
        plan = status.table.plan
        if status.ended is not None:
            say(f"Version {status.ended.plan.version} was given up: {status.ended.reason}")
        if plan is not None and plan.mode == "all":  # its replacement broke off, perhaps half done
            await_running(APPLICATION, say)
        elif plan is not None:
            say(f"Ending the {plan.mode} of version {plan.version}")
        _post(board, None, server, idle="challenger")
        ray.kill(board)
    for name in left:
        # Of a process that was killed there may be replicas that nobody asks and that take their time to go.
        serve.delete(name, _blocking=plan is not None and plan.application == name)
    return bool(left)


def replace(server: Running, bundle: Path, say: Say, *, afresh: bool = False) -> Running:
    """Serve a bundle in the place of the champion; a canary or shadow of it is taken with its settings, unless afresh.

    While the champion's replicas change, all items go to those beside them, so that no answer is of two versions. Returns
    what the bundle is served with since. Raises ServeError if it does not get ready; the champion has not noticed then.
    """
    version = _version(bundle)
    before = plan = under_way()
    if not afresh and plan is not None and plan.version == version and _wide_enough(plan.application, server):
        name, terms = plan.application, _terms(plan.application)
        server = Running(server.terms, ServeSettings.model_validate(terms.settings), terms.options)
    else:
        # What was replacing the champion reads on until this one does.
        ending = plan is None or plan.mode != "all"
        name, before = _start_beside(server, bundle, say, ending=ending, like_champion=True), None
    board = board_for_release()
    plan = Plan(name, version, "all")
    _post(board, plan, server, idle="champion", instead_of=before)
    say(f"Version {version} answers; its replicas take the place of version {server.version}'s")
    server = replaced(server, settings=server.settings.model_copy(update={"bundle": bundle}))
    deploy(APPLICATION, application(server.settings, server.options, server.terms.guard, in_place=True), "/")

    def hold() -> None:
        with suppress(ServeError, RayError):  # while it is started again
            if _status(board).table.plan != plan:  # it has forgotten what it said, and no gateway had heard it
                ray.get(board.post.remote(plan), timeout=CALL_S)

    try:
        await_running(APPLICATION, say, hold)
    except ServeError as error:
        message = (
            f"Version {version} answers, but its replicas did not get ready in the place of the champion's: {error}"
        )
        raise ServeError(f"{message}. Deploy it again, or roll back") from error
    end(server, lambda _: None)
    return server


def watch(board: Any, for_s: float | None = None) -> Iterator[Status]:
    """What is seen of a canary or shadow, twice a second, until it is none any more or for some seconds."""
    until = monotonic() + for_s if for_s is not None else None
    last = Status(Table(), Comparison(), [])
    while True:
        try:
            status = _heard(board)
        except ServeError:
            if known_board() is not None:
                raise
            status = replaced(last, table=Table())  # who ends a release removes its board,
        if status.table.plan is None and status.ended is None:
            status = replaced(last, table=Table())  # which has forgotten before what was seen
        last = status
        yield status
        plan = status.table.plan
        if plan is None or plan.mode == "all" or (until is not None and monotonic() >= until):
            return
        sleep(2 * LOOK_S)


def _start_beside(server: Running, bundle: Path, say: Say, *, ending: bool = True, like_champion: bool = False) -> str:
    """The application that a bundle is ready in.

    ending: a release that is under way is ended before, once the bundle is known to be sound. like_champion: with as many
    replicas as that has grown to.
    """
    version = _version(bundle)
    # No two ever share a name, so that no gateway can take one for another that it knew.
    name = f"{APPLICATION}-{server.name}-{version}-{uuid4().hex[:8]}"
    options = {deployment: chosen for deployment, chosen in server.options.items() if deployment != GATEWAY}
    if like_champion:
        options = {
            **options,
            **{
                deployment: _grown(options.get(deployment, {}), count)
                for deployment, count in replicas(APPLICATION).items()
                if options.get(deployment, {}).get("autoscaling_config")
            },
        }
    settings = server.settings.model_copy(update={"bundle": bundle})
    graph = challenger(settings, options, server.terms.guard)
    if ending:
        end(server, say)
    say(f"Starting version {version} beside version {server.version}")
    try:
        deploy(name, graph, None)
        await_running(name, say)
    except BaseException:
        serve.delete(name, _blocking=False)  # nobody has ever asked it
        raise
    return name


def _post(
    board: Any,
    plan: Plan | None,
    server: Running,
    *,
    idle: Literal["champion", "challenger"] | None = None,
    instead_of: Plan | None = None,
) -> None:
    """Tell all gateways, and return when they follow and the one that is not asked any more has answered what it had.

    A challenger may be given up before the last of them follows, which ends the wait. Raises ServeError if what the plan is
    to take the place of was given up before.
    """
    until = monotonic() + server.settings.limits.answer_s + GRACE_S
    if not _posted(board, plan, instead_of, until):
        ended = _status(board).ended
        said = f"was given up: {ended.reason}" if ended else "is not beside the champion any more"
        raise ServeError(f"Version {instead_of.version if instead_of else ''} {said}")
    while True:
        status = _status(board)
        if status.ended is not None and status.ended.plan == plan:
            return
        if status.table.plan != plan:  # the board was started again before a gateway had heard of it
            _posted(board, plan, None, until)
            status = _status(board)
        there = replicas(APPLICATION).get(GATEWAY, 0)
        if len(status.gateways) >= there and all(
            news.revision == status.table.revision
            and not (idle == "champion" and news.champion_busy)
            and not (idle == "challenger" and news.challenger_busy)
            for news in status.gateways
        ):
            return
        if monotonic() > until:
            following = sum(news.revision == status.table.revision for news in status.gateways)
            raise ServeError(f"Only {following} of {there} gateways follow the release: look at the log of the server")
        sleep(LOOK_S)


def _posted(board: Any, plan: Plan | None, instead_of: Plan | None, until: float) -> bool:
    """Whether the board took a plan, which is told again and again while it is being started."""
    while True:
        try:
            return ray.get(board.post.remote(plan, instead_of), timeout=CALL_S) is not None
        except RayError as error:
            if monotonic() > until:
                raise ServeError(f"The server cannot be told of the release: {error}") from error
            sleep(LOOK_S)


def _heard(board: Any) -> Status:
    """What a board knows once all gateways have told it what they know."""
    until = monotonic() + HEARD_S
    while True:
        status = _status(board)
        heard = status.table.revision or len(status.gateways) >= replicas(APPLICATION).get(GATEWAY, 0)
        if heard or monotonic() > until:
            return status
        sleep(LOOK_S)


def _status(board: Any) -> Status:
    try:
        return ray.get(board.status.remote(), timeout=CALL_S)
    except RayError as error:
        raise ServeError(f"The release cannot be followed, for its server does not answer: {error}") from error


def _terms(name: str) -> Terms:
    return serve.get_app_handle(name).terms.remote().result(timeout_s=CALL_S)


def _version(bundle: Path) -> str:
    return str(parse_manifest(bundle).version)


def _wide_enough(name: str, server: Running) -> bool:
    """Whether a challenger that read a few items can read all of them."""
    there, wanted = replicas(name), replicas(APPLICATION)
    return all(there.get(part, count) >= count for part, count in wanted.items() if part.startswith(RECOGNIZER))


def _grown(chosen: Mapping[str, Any], count: int) -> dict[str, Any]:
    scaling = dict(chosen["autoscaling_config"])
    least = max(scaling.get("min_replicas", 1), min(count, scaling.get("max_replicas", count)))
    return {**chosen, "autoscaling_config": {**scaling, "min_replicas": least, "initial_replicas": least}}
