"""The verb that makes bearer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glyphrun.cli.options import console, plain_errors

app = typer.Typer()


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who is to hold it; logs and rate limits go by it.")],
    file: Annotated[Path, typer.Option(help="File that gets its hash.")] = Path("runs/tokens"),
) -> None:
    """Make a bearer token for a served model. It is printed this once; the file has its hash alone.

    Example: [bold]glyphrun token camera-1[/]
    """
    from glyphrun_serve.tokens import add_token

    with plain_errors():
        made = add_token(file, name)
    typer.echo(made)
    if console.is_terminal:
        console.print(f"Keep it: {file} has only its hash. Serve with --tokens {file}.", soft_wrap=True)
