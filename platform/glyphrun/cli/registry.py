"""Verbs from a run's winner to a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from glyphrun.cli.options import (
    REGISTRY,
    JsonOption,
    ModelArgument,
    RegistryOption,
    console,
    plain_errors,
    progress_bar,
)

if TYPE_CHECKING:
    from glyphrun.promotion import Gate
    from glyphrun.version_diff import Change

REFUSED = 3  # a script can tell a refusal from an error
SHOWN = 10
LONGEST_VALUE = 40

app = typer.Typer()


@app.command()
def promote(
    run_dir: Annotated[Path, typer.Argument(help="A finished run, or a bundle's folder.")],
    name: Annotated[str, typer.Option(help="Name in the registry.")],
    dataset: Annotated[
        Path | None, typer.Option(help="Data set to compare on; the run's by default.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Held-out split to compare on.")] = "test",
    target: Annotated[
        Path | None,
        typer.Option(help="Serve config with a latency budget; the run's own by default.", show_default=False),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Share of items, and of characters, that it may at most read worse.", min=0, max=1)
    ] = 0.02,
    force: Annotated[bool, typer.Option("--force", help="Promote in any case; kept with the version.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why it is forced.", show_default=False)] = None,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Make a run's winner the current version of a name, if it passes the gate; exit code 3 if it does not.

    It must read held-out items no worse than the current version, by a paired bootstrap and McNemar's test, and meet the
    latency budget. The first version of a name has the budget alone to meet.

    Example: [bold]glyphrun promote runs/demo --name shirt-numbers[/]
    """
    from glyphrun.promotion import PromotionRefused, promote_run
    from glyphrun.registry import Registry
    from glyphrun.target import read_target

    with plain_errors(), progress_bar("items") as progress:
        try:
            promoted, gate = promote_run(
                Registry(registry),
                run_dir,
                name,
                at=datetime.now(UTC),
                dataset=dataset,
                split=split,
                target=read_target(target) if target else None,
                margin=margin,
                force=force,
                reason=reason,
                progress=progress,
            )
        except PromotionRefused as refusal:
            _refuse(f"not promoted to {name}", str(refusal).splitlines())
    for line in described(gate):
        console.print(line, soft_wrap=True, highlight=False)
    if promoted.current != promoted.version:
        _refuse(
            f"{name} version {promoted.version} is kept, but version {promoted.current} became current meanwhile",
            [
                f"promote {run_dir} again to compare them, or point to it: glyphrun rollback {name} --to {promoted.version}"
            ],
        )
    for failure in gate.failures:
        typer.echo(f"glyphrun: forced although {failure}", err=True)
    console.print(f"{name} version {promoted.version}: {promoted.place}", soft_wrap=True)


@app.command()
def models(as_json: JsonOption = False, registry: RegistryOption = REGISTRY) -> None:
    """The models of the registry.

    Example: [bold]glyphrun models[/]
    """
    from glyphrun.registry import Registry
    from glyphrun.versions import RegistryError

    table = Table("name", "version", "promoted", "recognizer", "exact on test")
    rows, broken = [], []
    with plain_errors():
        known = Registry(registry)
        for name in known.names():
            try:
                model = known.model(name)
                promotion, manifest = known.promotion(name, model.version), known.manifest(name, model.version)
            except RegistryError as error:
                broken.append(str(error))
                continue
            rows.append({**asdict(model), "promotion": promotion.model_dump(mode="json"), "metrics": manifest.metrics})
            scores = manifest.metrics.get("test") or manifest.metrics.get("val")
            table.add_row(
                name,
                f"{model.version} of {len(model.versions)}",
                f"{promotion.at:%Y-%m-%d}{', forced' if promotion.forced else ''}",
                manifest.recognizer["kind"],
                f"{scores['exact']:.3f}" if scores else "",
            )
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
        else:
            console.print(table)
        if broken:
            raise RegistryError("\n".join(broken))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name in the registry.")],
    to: Annotated[
        int | None, typer.Option(help="Version; the one that was current before by default.", show_default=False)
    ] = None,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Make an earlier version of a name current again. No version is removed.

    Example: [bold]glyphrun rollback shirt-numbers --to 2[/]
    """
    from glyphrun.registry import Registry

    with plain_errors():
        model = Registry(registry).rollback(name, at=datetime.now(UTC), to=to)
    console.print(f"{name} version {model.version}: {model.place}", soft_wrap=True)


@app.command()
def diff(
    name: Annotated[str, typer.Argument(help="Name in the registry.")],
    one: Annotated[int, typer.Argument(help="A version.")],
    other: Annotated[int, typer.Argument(help="Another one.")],
    dataset: Annotated[Path | None, typer.Option(help="Data set that both are to read.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="Split of it.")] = "test",
    as_json: JsonOption = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """What differs between two versions: settings, scores, weights, and the items that they read differently.

    What they read is known of a version and the one that it was compared with; --dataset has any two read again.

    Example: [bold]glyphrun diff shirt-numbers 1 2[/]
    """
    from glyphrun.ensemble_bundle import load_reader
    from glyphrun.promotion import read_both
    from glyphrun.registry import Registry
    from glyphrun.version_diff import diff_versions

    with plain_errors(), progress_bar("items") as progress:
        known, readings = Registry(registry), None
        if dataset is not None:
            first, second = (load_reader(known.resolve(f"{name}@{version}")) for version in (one, other))
            readings = read_both(first, second, dataset, split, progress)
        found = diff_versions(known, name, one, other, readings)
    if as_json:
        print(found.model_dump_json())
        return
    for title, changes in (("settings", found.settings), ("scores", found.metrics), ("weights", found.weights)):
        _show_changes(title, changes, one, other)
    if found.items is None:
        console.print("It is not known what both read of the same items: --dataset has them read.")
        return
    for title, items in (
        (f"{one} right, {other} wrong", found.items.only_one_right),
        (f"{one} wrong, {other} right", found.items.only_other_right),
        ("both wrong, differently", found.items.both_wrong),
    ):
        console.print(f"{title}: {len(items)} of {found.items.n} items of {found.items.dataset}, {found.items.split}")
        for item in items[:SHOWN]:
            console.print(
                f"  {item.sample_id}\t{item.truth!r}\t{item.one!r} → {item.other!r}", markup=False, highlight=False
            )
        if len(items) > SHOWN:
            console.print(f"  … {len(items) - SHOWN} more with --json")


@app.command()
def serve(
    model: ModelArgument,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    registry: RegistryOption = REGISTRY,
) -> None:
    """Serve a model over HTTP with a page to try it, until Ctrl-C.

    Example: [bold]glyphrun serve shirt-numbers[/]
    """

    from glyphrun.cluster import gpus, wait_for_interrupt
    from glyphrun.registry import Registry
    from glyphrun_serve.app import ServeSettings, run

    with plain_errors():
        bundle = Registry(registry).resolve(model)
    with plain_errors(), run(ServeSettings(bundle=bundle, gpus=gpus()), host=host, port=port) as server:
        console.print(f"{server.url}/  (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()
    console.print("Stopped.")


def described(gate: Gate) -> list[str]:
    """The figures of a gate, a line each."""
    lines = []
    if gate.latency is not None:
        target = gate.latency.target
        lines.append(
            f"latency  {gate.latency.ms:.1f} ms of {target.budget.latency_ms:g} ms, {target.budget.percentile:g} % of "
            f"{gate.latency.batches} batches of {target.batch} on {gate.latency.device}"
        )
    if gate.comparison is not None:
        found = gate.comparison
        lines.append(f"compared with version {gate.champion} on {found.n} items of {gate.dataset}, {gate.split}")
        for what, rate in (("wrong  ", found.errors), ("CER    ", found.cer)):
            if rate is not None:
                lines.append(
                    f"{what}  {rate.candidate:.4f}, was {rate.champion:.4f}; difference {rate.difference:+.4f}, 95 % interval "
                    f"{rate.low:+.4f} to {rate.high:+.4f}, p = {rate.p:.3g}"
                )
        lines.append(
            f"McNemar  it alone reads {found.only_candidate} right, the other alone {found.only_champion}, "
            f"p = {found.mcnemar_p:.3g}"
        )
    return lines


def _show_changes(title: str, changes: Sequence[Change], one: int, other: int) -> None:
    if not changes:
        console.print(f"{title}: the same")
        return
    table = Table(title, str(one), str(other))
    for change in changes:
        table.add_row(change.key, *(escape(_short(value)) for value in (change.one, change.other)))
    console.print(table)


def _short(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    shown = str(value)
    return shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}…"


def _refuse(what: str, reasons: Sequence[str]) -> NoReturn:
    typer.secho(f"glyphrun: {what}", err=True, fg="red" if sys.stderr.isatty() else None)
    for reason in reasons:
        typer.echo(f"  {reason}", err=True)
    raise typer.Exit(REFUSED)
