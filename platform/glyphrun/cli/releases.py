"""Verbs of a running server: give it another version, try one on a share of its traffic, go back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from glyphrun.cli.options import REGISTRY, RegistryOption, console, plain_errors

if TYPE_CHECKING:
    from glyphrun.registry import Registry
    from glyphrun_serve.comparison import Comparison, Tally
    from glyphrun_serve.release_board import Status
    from glyphrun_serve.releasing import Running

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray that serves; else RAY_ADDRESS, or that of `glyphrun serve` on this machine.",
        show_default=False,
    ),
]

# What a server was given to answer everything with.
WHOLE = ("serve", "deploy", "rollback")

app = typer.Typer()


@app.command()
def deploy(
    model: Annotated[str, typer.Argument(help="NAME for its current version, or NAME@VERSION.")],
    canary: Annotated[
        float | None,
        typer.Option(help="Try it on so many percent of the traffic.", min=0.1, max=99, show_default=False),
    ] = None,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Have it read a copy of the traffic; its answers are compared, not returned."),
    ] = False,
    address: AddressOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Serve config with whose settings it is served; else those that the server runs with. Who may ask is not "
            "changed.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option(help="Show how a canary or shadow compares until it ends or Ctrl-C.")] = True,
    seconds: Annotated[
        float | None, typer.Option("--for", help="Watch for so many seconds.", min=0, show_default=False)
    ] = None,
    errors: Annotated[
        float, typer.Option(help="A canary ends by itself if this much more of its items fail.", min=0, max=0.99)
    ] = 0.01,
    latency_ms: Annotated[float, typer.Option(help="Its 95th percentile may be up to this,", min=0.1)] = 100.0,
    slower: Annotated[float, typer.Option(help="or this many times the champion's.", min=1)] = 1.5,
    least: Annotated[int, typer.Option(help="Answers of each before latency is judged.", min=1)] = 50,
    history: Annotated[bool, typer.Option("--history", help="Show what servers of it were given, and end.")] = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Give a running server a version of the registry. No request fails meanwhile.

    The version starts beside the one that is served and takes its place once it is warm. With --canary or --shadow it stays
    beside it and both are compared; it is given up by itself, with exit code 1, when it fails more often or is slower than
    the bounds allow. Deploy the same version again to keep it, or the champion's to end it.

    Example: [bold]glyphrun deploy shirt-numbers@3 --canary 10[/], then [bold]glyphrun deploy shirt-numbers@3[/]
    """
    from glyphrun.registry import Registry
    from glyphrun.versions import RegistryError
    from glyphrun_serve.announced import server_of, show_token

    with plain_errors():
        known = Registry(registry)
        name, _, wanted = model.partition("@")
        current = known.model(name).version
        bundle = known.resolve(f"{name}@{wanted or current}")
        if history:
            _show_history(known, name)
            return
        if canary is not None and shadow:
            raise RegistryError("--canary and --shadow exclude each other: name one")
        if seconds is not None and canary is None and not shadow:
            raise RegistryError("--for is how long a canary or shadow is watched: name one of them, or leave it out")

        found = server_of(name, address)
        if found is None:
            message = f"no server of {name} runs on this machine: start one, or name the Ray of one with --address"
            raise RegistryError(message)
        show_token(found)

        from glyphrun_serve import releasing
        from glyphrun_serve.config_check import read_config
        from glyphrun_serve.release_turn import release_turn
        from glyphrun_serve.serve_error import ServeError
        from glyphrun_serve.verdict import Bounds

        bounds = Bounds(errors=errors, latency_ms=latency_ms, slower=slower, least=least)
        chosen = None if config is None else read_config(config, bundle)
        with releasing.connected(found):
            with release_turn(_say):
                server = releasing.running(None if chosen is None else (chosen.settings, chosen.options))
                _expect_name(server, name, found.address)
                # Another process may have moved the pointer meanwhile.
                version = int(wanted or known.model(name).version)
                bundle = known.resolve(f"{name}@{version}")
                if canary is None and not shadow:
                    _replace(known, server, bundle, version, "deploy", afresh=config is not None)
                    return
                if str(version) == server.version:
                    raise ServeError(f"Version {version} of {name} is what the server answers with: name another")
                how, share = ("shadow", 0.0) if canary is None else ("canary", canary)
                board = releasing.begin(server, bundle, how, share, bounds, _say, afresh=config is not None)  # type: ignore[arg-type]
                settings = server.settings.model_dump(mode="json")
                _note(known, name, version, how, settings, server.options, share=canary, replaced=server.version)
            last = _watched(board, server, version, seconds) if watch else next(releasing.watch(board))
            _conclude(last, server, version)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name in the registry.")],
    to: Annotated[
        int | None, typer.Option(help="Version; the one that was current before by default.", show_default=False)
    ] = None,
    address: AddressOption = None,
    server: Annotated[bool, typer.Option(help="Have the server that runs follow.")] = True,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Make an earlier version of a name current again. No version is removed.

    A server of this name that `glyphrun serve` runs on this machine, or that is reached by RAY_ADDRESS or --address, is given
    that version too, with the settings that it was last deployed with. A canary or shadow is ended first. No request fails.

    Example: [bold]glyphrun rollback shirt-numbers --to 2[/]
    """
    from glyphrun.registry import Registry

    with plain_errors():
        known = Registry(registry)
        model = known.rollback(name, at=datetime.now(UTC), to=to)
        console.print(f"{name} version {model.version}: {model.place}", soft_wrap=True)
        if server:
            try:
                _roll_back_server(known, name, model.version, address)
            except BaseException as error:
                # The same command would go back by one more version.
                _say(f"The server may not have version {model.version} yet: `glyphrun deploy {name}` gives it to it")
                if isinstance(error, KeyboardInterrupt):
                    raise typer.Exit(130) from None
                raise


def _roll_back_server(known: Registry, name: str, version: int, address: str | None) -> None:
    from glyphrun_serve.announced import server_of, show_token

    found = server_of(name, address)
    if found is None:
        return
    show_token(found)

    from glyphrun_serve import releasing
    from glyphrun_serve.app import ServeSettings
    from glyphrun_serve.release_turn import release_turn
    from glyphrun_serve.serve_error import ServeError

    bundle = known.resolve(f"{name}@{version}")
    with releasing.connected(found), release_turn(_say):
        try:
            kept = [said for said in known.deployments(name) if said.version == version and said.how in WHOLE]
            chosen = (ServeSettings.model_validate(kept[-1].settings), kept[-1].options) if kept else None
            running = releasing.running(chosen)
            _expect_name(running, name, found.address)
            if address is None:
                _expect_registry(running, known)
        except ServeError as error:
            if address is not None:
                raise
            _say(f"No server was changed: {error}")
            return
        _replace(known, running, bundle, version, "rollback", afresh=True)


def _replace(known: Registry, server: Running, bundle: Path, version: int, how: str, *, afresh: bool) -> None:
    from glyphrun_serve import releasing
    from glyphrun_serve.applications import settled

    if str(version) == server.version and (how == "rollback" or not afresh) and settled():
        plan = releasing.under_way()
        ended = releasing.end(server, _say)
        if plan is not None and plan.mode == "all" and server.terms.settings is not None:  # what broke off is finished
            _note(known, server.name, version, how, server.terms.settings, server.terms.options)
        _say(f"The server answers with version {version}{' alone' if ended else ' already'}")
        return
    before = server.terms
    if before.settings is not None and str(version) != before.card.version:
        known_versions = {str(said.version) for said in known.deployments(server.name) if said.how in WHOLE}
        if before.card.version not in known_versions:
            _note(known, server.name, int(before.card.version), "serve", before.settings, before.options)
    server = releasing.replace(server, bundle, _say, afresh=afresh)
    settings = server.settings.model_dump(mode="json")
    _note(known, server.name, version, how, settings, server.options, replaced=before.card.version)
    _say(f"The server answers with version {version} in place of {before.card.version}")


def _note(
    known: Registry,
    name: str,
    version: int,
    how: str,
    settings: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]],
    **rest: Any,
) -> None:
    from glyphrun.versions import Deployment

    said = {
        "version": version,
        "at": datetime.now(UTC),
        "how": how,
        "settings": settings,
        "options": {deployment: dict(chosen) for deployment, chosen in options.items()},
        **rest,
    }
    known.note_deployment(name, Deployment.model_validate(said))


def _watched(board: Any, server: Running, version: int, seconds: float | None) -> Status:
    """Shows what is seen of a canary or shadow; what was seen last."""
    from glyphrun_serve import releasing

    seen = releasing.watch(board, seconds)
    last = next(seen)
    try:
        with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
            for status in chain([last], seen):
                last = status
                live.update(_compared(last.seen, server.version, str(version)), refresh=console.is_terminal)
    except KeyboardInterrupt:
        pass
    if not console.is_terminal:
        console.print(_compared(last.seen, server.version, str(version)))
    return last


def _conclude(last: Status, server: Running, version: int) -> None:
    """What is to be said of a release that is watched no longer. Raises ServeError if it was given up."""
    from glyphrun_serve import releasing
    from glyphrun_serve.release_turn import release_turn
    from glyphrun_serve.serve_error import ServeError

    if last.ended is not None:
        with suppress(ServeError), release_turn(_say):
            if releasing.under_way() is None:  # else another process has released something meanwhile
                releasing.end(server, lambda _: None)
        raise ServeError(f"Version {version} was given up: {last.ended.reason}")
    plan = last.table.plan
    if plan is None or plan.mode == "all":
        _say(f"Another process {'keeps' if plan else 'has ended the trial of'} version {version}")
    else:
        _say(_advice(server, version))


def _advice(server: Running, version: int) -> str:
    keep, drop = (f"`glyphrun deploy {server.name}@{number}`" for number in (version, server.version))
    return f"Version {version} goes on beside version {server.version}: {keep} keeps it, {drop} ends it."


def _compared(seen: Comparison, champion: str, challenger: str) -> Table:
    table = Table("", f"version {champion}", f"version {challenger}")
    rows = [
        ("items", *(f"{tally.items:,}" for tally in (seen.champion, seen.challenger))),
        ("failures", *(f"{tally.failed:,}" for tally in (seen.champion, seen.challenger))),
        ("p50, ms", *(_ms(tally, 50) for tally in (seen.champion, seen.challenger))),
        ("p95, ms", *(_ms(tally, 95) for tally in (seen.champion, seen.challenger))),
        ("abstained", *(f"{tally.abstained:,}" for tally in (seen.champion, seen.challenger))),
        ("confidence", *(_share(tally.mean_confidence) for tally in (seen.champion, seen.challenger))),
    ]
    for row in rows:
        table.add_row(*row)
    if seen.agreement is not None or seen.skipped:
        table.add_row("read alike", "", f"{_share(seen.agreement)} of {seen.agreed + seen.differed:,}")
        table.add_row("skipped", "", f"{seen.skipped:,}")
    return table


def _ms(tally: Tally, percent: float) -> str:
    found = tally.percentile(percent)
    return "–" if found is None else f"{found:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _show_history(known: Registry, name: str) -> None:
    table = Table("at", "version", "how", "in place of")
    for said in known.deployments(name):
        how = f"{said.how} {said.share:g} %" if said.share is not None else said.how
        table.add_row(f"{said.at:%Y-%m-%d %H:%M:%S}", str(said.version), how, said.replaced or "")
    console.print(table)


def _expect_name(server: Running, name: str, ray: str) -> None:
    from glyphrun_serve.serve_error import ServeError

    if server.name != name:
        raise ServeError(
            f"The server of the Ray at {ray} serves {server.name}, not {name}: start one of {name} instead"
        )


def _expect_registry(server: Running, known: Registry) -> None:
    """A server that nobody has named may be of another registry that has this name too."""
    from glyphrun.versions import RegistryError
    from glyphrun_serve.serve_error import ServeError

    try:
        ours = known.resolve(f"{server.name}@{server.version}").resolve()
    except RegistryError:
        ours = None
    served = (server.terms.settings or {}).get("bundle")
    if str(ours) != served:
        raise ServeError(f"what runs on this machine is served from {served}; name its Ray with --address")


def _say(what: str) -> None:
    console.print(what, soft_wrap=True, highlight=False)
