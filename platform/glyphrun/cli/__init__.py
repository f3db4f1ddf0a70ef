"""The verbs of ``glyphrun``, each a few lines; what they do is elsewhere."""

from __future__ import annotations

import typer

from glyphrun.cli import (
    access,
    cluster,
    data,
    decoding,
    ensembles,
    language,
    promotion,
    reading,
    recognizers,
    registry,
    releases,
    runs,
    serving,
)

app = typer.Typer(
    name="glyphrun",
    help="From labelled frames to a served text recognizer: sweep, select, report, promote, serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(runs.app)
app.add_typer(cluster.app)
app.add_typer(data.app, name="data")
app.add_typer(reading.app)
app.add_typer(decoding.app)
app.add_typer(ensembles.app)
app.add_typer(language.lm, name="lm")
app.add_typer(language.lexicon, name="lexicon")
app.add_typer(recognizers.app)
app.add_typer(promotion.app)
app.add_typer(registry.app)
app.add_typer(releases.app)
app.add_typer(serving.app)
app.add_typer(access.app)
