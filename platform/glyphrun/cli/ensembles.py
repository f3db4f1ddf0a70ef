"""The verb that makes several models one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glyphrun.cli.options import REGISTRY, JsonOption, RegistryOption, console, plain_errors

app = typer.Typer()


@app.command()
def ensemble(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Bundles, names in the registry, NAME@VERSION, or runs, also at URIs: a run's winner and its snapshots. "
            "MEMBER=MODEL gives one a name of its own.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    vote: Annotated[str, typer.Option(help="sum, majority, confidence, longest, rover, mbr, or average.")] = "mbr",
    weight: Annotated[
        list[str] | None, typer.Option(help="MEMBER=NUMBER: how much one counts, 1 by default.", show_default=False)
    ] = None,
    deadline_ms: Annotated[
        list[str] | None,
        typer.Option(help="MEMBER=NUMBER: one that takes longer over a batch is left out.", show_default=False),
    ] = None,
    quorum: Annotated[int, typer.Option(help="How many members must answer.", min=1)] = 1,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set on which all are scored and timed.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split of it.")] = "val",
    as_json: JsonOption = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Several models as one bundle, which is evaluated, promoted and served like any; scored beside its members at once.

    Example: [bold]glyphrun ensemble runs/demo shirt-numbers --vote rover --out runs/both --dataset runs/demo/data[/]
    """
    from glyphrun.ensembled import make_ensemble, shown
    from glyphrun.members import EnsembleSettings

    with plain_errors():
        settings = EnsembleSettings.model_validate(
            {"vote": vote, "weights": _pairs(weight), "deadline_ms": _pairs(deadline_ms), "quorum": quorum}
        )
        with Console(stderr=True).status("") as status:
            made = make_ensemble(members_of(models, registry), out, settings, dataset, split, status.update)
    if as_json:
        print(json.dumps({"out": str(out), "split": split, **made.to_json()}, ensure_ascii=False))
        return
    console.print(shown(made))
    for remark in made.remarks:
        console.print(remark, soft_wrap=True, highlight=False)
    console.print(str(out), soft_wrap=True)


def members_of(models: Sequence[str], registry: str) -> dict[str, Path]:
    """The bundles behind models, by the names of members. Raises ValueError for two of one name, and what they raise."""
    found: dict[str, Path] = {}
    for model in models:
        for name, folder in _readers(model, registry).items():
            if name in found:
                raise ValueError(
                    f"{folder} and {found[name]} would both be the member {name}: name one yourself, "
                    f"such as other={folder}"
                )
            found[name] = folder
    return found


def _readers(model: str, registry: str) -> dict[str, Path]:
    from glyphrun.mirror import CHECKPOINT, fetch_run
    from glyphrun.registry import Registry
    from glyphrun.sweeps.readers import readers_of

    before, equals, after = model.partition("=")
    # A folder's own name may have an equals sign in it, and so may the options of a URI.
    name, source = ("", model) if not equals or "://" in before or Path(model).exists() else (before, after)
    if "://" in source:
        source = str(fetch_run(source, without=(CHECKPOINT,)))
    known = Registry(registry)
    if not Path(source).is_dir() or source.partition("@")[0] in known.names():
        return {name or source.replace("@", "-"): known.resolve(source)}
    readers = readers_of([Path(source)])
    if not name:
        return readers
    if len(readers) > 1:
        raise ValueError(f"{source} has {', '.join(readers)}, which cannot all be {name}: leave the name out")
    return dict(zip([name], readers.values(), strict=True))


def _pairs(given: Sequence[str] | None) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in given or ())
