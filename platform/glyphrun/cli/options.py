"""What the verbs share: arguments, errors in one sentence, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError

console = Console()

RegistryOption = Annotated[
    str,
    typer.Option("--registry", envvar="GLYPHRUN_REGISTRY", help="Folder of the model registry, or s3://BUCKET/PREFIX."),
]
RunArgument = Annotated[str, typer.Argument(help="Folder of a run, or its URI.", show_default=False)]
DatasetArgument = Annotated[Path, typer.Argument(help="Folder of a glyphrun data set.", show_default=False)]
ModelArgument = Annotated[str, typer.Argument(help="A bundle's folder, a model's name or NAME@VERSION.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
REGISTRY = "runs/registry"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that a person can mend are one sentence and exit code 1; Ctrl-C is 130."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        typer.secho(f"glyphrun: {'.'.join(map(str, first['loc']))}: {first['msg']}", err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        if type(error).__module__.startswith(("glyphrun", "builtins", "safetensors")):
            typer.secho(f"glyphrun: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
            raise typer.Exit(1) from None
        raise
    except KeyboardInterrupt:
        typer.echo("glyphrun: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A callback (done, in all) behind a progress bar on standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
