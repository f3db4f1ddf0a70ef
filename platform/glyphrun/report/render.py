"""The run's report: one self-contained HTML page, for people who were not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from glyphrun.report import curves, errors, tables, tradeoff
from glyphrun.report.confidence import confidence_section
from glyphrun.report.palette import family_marks
from glyphrun.report.tracklets import Example, cards
from glyphrun.report.wording import duration, finite, milliseconds, moment, percent

__all__ = ["Example", "render_report"]

_HERE = Path(__file__).parent


def render_report(results: Mapping[str, Any], examples: Sequence[Example], out: Path) -> None:
    """Write the report of a run, given its ``results.json`` and samples to show; ``out`` is replaced atomically.

    The page loads nothing from elsewhere: Plotly's script, styles and frames are inside it. Raises ValueError for
    results of another schema or of another shape, and for frames that a browser cannot show.
    """
    if results.get("schema") != 1:
        raise ValueError(f"results of schema {results.get('schema')!r} cannot be reported; schema 1 is expected")
    try:
        page = _page(results, examples)
    except KeyError as error:
        raise ValueError(f"the results lack a key ({error}); write results.json again with this version") from error
    render_page("template.html", page, out)


def render_page(template: str, page: Mapping[str, Any], out: Path) -> None:
    """Write a page from a template beside this file, with what it shows, our styles and scripts, and Plotly inside it.

    ``out`` is replaced atomically. Raises ValueError for a key that the template asks for and the page lacks.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inside = {
        "plotly": Markup(get_plotlyjs()),
        "style": Markup((_HERE / "report.css").read_text("utf-8")),
        "script": Markup((_HERE / "report.js").read_text("utf-8")),
    }
    try:
        written = environment.get_template(template).render({**inside, **page})
    except UndefinedError as error:
        raise ValueError(f"the results lack a key ({error}); write results.json again with this version") from error
    _write_atomically(written, out)


def _page(results: Mapping[str, Any], examples: Sequence[Example]) -> dict[str, Any]:
    run, splits = results["run"], results["splits"]
    winner = next(
        (trial for trial in results["trials"] if trial["id"] == results.get("winner")),
        None,
    )
    split_rows, axis_low = tables.split_rows(splits)
    wrong = tables.confusions(splits)
    confusions = [confusion for name in ("test", "unseen") for confusion in _confusions(splits, name)]
    shown = cards(examples)
    confidence = confidence_section(results)
    return {
        "run": run,
        "finished": moment(run.get("finished")),
        "took": duration(run.get("seconds")),
        "headline": _headline(winner, splits),
        "winner": winner,
        "selection": {"rule": "", "reason": ""} | (results.get("selection") or {}),
        "latency": _latency(winner, results),
        "splits": split_rows,
        "axis_low": percent(axis_low, digits=0),
        "rows": tables.leaderboard(results),
        "columns": tables.LEADERBOARD_COLUMNS,
        "statuses": {
            status: sum(trial.get("status") == status for trial in results["trials"])
            for status in ("finished", "stopped", "failed")
        },
        "unscored": sum(finite((trial.get("val") or {}).get("exact")) is None for trial in results["trials"]),
        "families": list(family_marks(results["trials"]).values()),
        "figures": {
            "scatter": tradeoff.accuracy_against_latency(results),
            "curve-exact": curves.learning_curves(results, "exact"),
            "curve-loss": curves.learning_curves(results, "train_loss"),
            "lengths": errors.exact_by_length(results),
            "characters": errors.character_confusions(confusions),
            **(confidence.figures if confidence else {}),
        },
        "confusions": wrong[:15],
        "confusions_left": len(wrong[15:]),
        "confidence": confidence,
        "cards": shown,
        "right": sum(card.right for card in shown),
        "provenance": tables.provenance(results),
        "command": run.get("command") or "glyphrun sweep EXPERIMENT.yaml DATASET --run-dir NEW_FOLDER",
    }


def _confusions(splits: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return (splits.get(name) or {}).get("confusions") or ()


def _headline(winner: Mapping[str, Any] | None, splits: Mapping[str, Any]) -> str:
    if winner is None:
        return "No trial met the latency budget with a score, so there is no winner."
    test = splits.get("test") or splits.get("val")
    if not test:
        return f"{winner['family']} won."
    return f"{winner['family']} reads {percent(test['exact'])} of the {'test' if splits.get('test') else 'val'} set exactly."


def _latency(winner: Mapping[str, Any] | None, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The winner's latency and the budget, also as positions in per cent on a common axis from 0."""
    measured = (winner or {}).get("latency_ms") or {}
    p50, p95 = finite(measured.get("p50")), finite(measured.get("p95"))
    budget = finite(results.get("budget", {}).get("latency_ms"))
    if p50 is None or p95 is None or budget is None:
        return None
    axis = 1.15 * max(p95, budget)
    return {
        "p50": milliseconds(p50),
        "p95": milliseconds(p95),
        "budget": f"{budget:g} ms",
        "within": bool((winner or {}).get("within_budget")),
        "p50_at": round(100 * p50 / axis, 2),
        "p95_at": round(100 * p95 / axis, 2),
        "budget_at": round(100 * budget / axis, 2),
    }


def _write_atomically(page: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
        # mkstemp makes the file private; a report is there to be passed on.
        os.chmod(aside, 0o644)
        os.replace(aside, out)
    except BaseException:
        os.unlink(aside)
        raise
