"""Verbs from a run's winner to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from glyphrun.cli.options import (
    REGISTRY,
    ModelArgument,
    RegistryOption,
    console,
    plain_errors,
)

app = typer.Typer()


@app.command()
def promote(
    run_dir: Annotated[Path, typer.Argument(help="A finished run, or a bundle's folder.")],
    name: Annotated[str, typer.Option(help="Name in the registry.")],
    registry: RegistryOption = REGISTRY,
) -> None:
    """Make a run's winner the current version of a name in the registry.

    Example: [bold]glyphrun promote runs/demo --name shirt-numbers[/]
    """
    from glyphrun.registry import Registry

    with plain_errors():
        bundle = run_dir / "bundle" if (run_dir / "bundle").exists() else run_dir
        model = Registry(registry).promote(bundle, name)
    console.print(f"{model.name} version {model.version}: {model.path}", soft_wrap=True)


@app.command()
def models(registry: RegistryOption = REGISTRY) -> None:
    """The models of the registry.

    Example: [bold]glyphrun models[/]
    """
    from glyphrun.bundle import read_manifest
    from glyphrun.registry import Registry

    with plain_errors():
        table = Table()
        for column in ("name", "version", "recognizer", "exact on test"):
            table.add_column(column, no_wrap=True)
        table.add_column("folder", overflow="fold")
        for model in Registry(registry).models():
            manifest = read_manifest(model.path)
            scores = manifest.metrics.get("test") or manifest.metrics.get("val")
            exact = f"{scores['exact']:.3f}" if scores else ""
            table.add_row(model.name, str(model.version), manifest.recognizer["kind"], exact, str(model.path))
    console.print(table)


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
        bundle = Registry(registry.absolute()).resolve(model)
    with plain_errors(), run(ServeSettings(bundle=bundle, gpus=gpus()), host=host, port=port) as server:
        console.print(f"{server.url}/  (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()
    console.print("Stopped.")
