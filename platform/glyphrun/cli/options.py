"""What the verbs share: arguments, errors in one sentence, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
GraphemesOption = Annotated[
    bool, typer.Option("--graphemes", help="CER counts grapheme clusters, such as an Odia conjunct, as one character.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
REGISTRY = "runs/registry"
TOLD = (
    "glyphrun",
    "builtins",
    "safetensors",
    "json",
    "pyarrow",
    "torch",
)  # whose errors are about what they were given


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that a person can mend are one sentence and exit code 1; Ctrl-C is 130."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        _end(f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, "))
    except (ValueError, OSError, RuntimeError, MemoryError, SafetensorError) as error:
        if isinstance(error, OSError | MemoryError) or type(error).__module__.startswith(TOLD):
            _end(_said(error) or "there is not memory enough: close other programs, or give less at a time")
        raise
    except KeyboardInterrupt:
        typer.echo("glyphrun: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _end(sentence: str) -> NoReturn:
    typer.secho(f"glyphrun: {sentence}", err=True, fg="red" if sys.stderr.isatty() else None)
    raise typer.Exit(1) from None


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A callback (done, in all) behind a progress bar on standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
