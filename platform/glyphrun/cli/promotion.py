"""The verb that takes a run's winner past the gate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from glyphrun.cli.options import REGISTRY, RegistryOption, console, plain_errors, progress_bar

if TYPE_CHECKING:
    from glyphrun.promotion import Gate

REFUSED = 3  # a script can tell a refusal from an error

app = typer.Typer()


@app.command()
def promote(
    run_dir: Annotated[str, typer.Argument(help="A finished run's folder or URI, or a bundle's folder.")],
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
    from glyphrun.mirror import TRIALS, fetch_run, shown
    from glyphrun.promotion import PromotionRefused, promote_run
    from glyphrun.registry import Registry
    from glyphrun.target import read_target

    with plain_errors(), progress_bar("items") as progress:
        try:
            promoted, gate = promote_run(
                Registry(registry),
                fetch_run(run_dir, without=(TRIALS,)),
                name,
                at=datetime.now(UTC),
                dataset=dataset,
                split=split,
                target=read_target(target) if target else None,
                margin=margin,
                force=force,
                reason=reason,
                place=shown(run_dir),
                progress=progress,
            )
        except PromotionRefused as refusal:
            _refuse(f"not promoted to {name}", str(refusal).splitlines())
    for line in _described(gate):
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


def _described(gate: Gate) -> list[str]:
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


def _refuse(what: str, reasons: Sequence[str]) -> NoReturn:
    typer.secho(f"glyphrun: {what}", err=True, fg="red" if sys.stderr.isatty() else None)
    for reason in reasons:
        typer.echo(f"  {reason}", err=True)
    raise typer.Exit(REFUSED)
