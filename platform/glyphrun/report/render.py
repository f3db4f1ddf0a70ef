"""The run's report: one self-contained HTML page, for people who were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphrun.report import costs, curves, errors, joint, tables
from glyphrun.report.canvas import Figure, Results, winners
from glyphrun.report.confidence import confidence_section
from glyphrun.report.decoding import accuracy_against_time, decode_section
from glyphrun.report.examples import Example, example_section
from glyphrun.report.generalization import generalization
from glyphrun.report.importance import importance_section
from glyphrun.report.pages import render_page
from glyphrun.report.palette import family_marks
from glyphrun.report.parallel import parallel_coordinates
from glyphrun.report.unfinished import unfinished_section
from glyphrun.report.wording import duration, finite, milliseconds, moment, percent

__all__ = ["Example", "render_report"]

SECTIONS = {
    "summary": "Summary",
    "costs": "Accuracy and costs",
    "joint": "Ways of reading",
    "leaderboard": "Leaderboard",
    "unfinished": "Unfinished",
    "curves": "Learning curves",
    "space": "Search space",
    "decoding": "Decoding",
    "generalization": "Seen and unseen",
    "confusions": "Confusions",
    "confidence": "Confidence",
    "examples": "Examples",
    "provenance": "Provenance",
}


def render_report(
    results: Results, examples: Sequence[Example], out: Path, *, decode: Mapping[str, Any] | None = None
) -> None:
    """Write the report of a run, given its ``results.json`` and samples to show; ``out`` is replaced atomically.

    decode: the ``decode.json`` of a decode sweep over what the run has trained. The page loads nothing from elsewhere:
    Plotly's script, styles and frames are inside it. Raises ValueError for results of another schema or of another shape,
    and for frames that a browser cannot show.
    """
    if results.get("schema") != 1:
        raise ValueError(f"results of schema {results.get('schema')!r} cannot be reported; schema 1 is expected")
    try:
        page = _page(results, examples, decode)
    except KeyError as error:
        raise ValueError(f"the results lack a key ({error}); write results.json again with this version") from error
    render_page("run.html", page, out)


def _page(results: Results, examples: Sequence[Example], decode: Mapping[str, Any] | None) -> dict[str, Any]:
    run, splits, trials = results["run"], results["splits"], results["trials"]
    winner = next((trial for trial in trials if trial["id"] == results.get("winner")), None)
    split_rows, axis_low = tables.split_rows(splits)
    wrong = tables.confusions(splits)
    confidence = confidence_section(results)
    shown = example_section(examples, splits)
    searched, chosen = joint.joint_section(results), joint.chosen_point(results)
    # The rows of a decode search are those of its ways of reading, which also have costs.
    swept = decode if decode and decode["rows"] and not searched else None
    decoding = decode_section(swept["rows"], split=swept["split"]) if swept else None
    there = {"confidence": confidence, "examples": shown, "decoding": decoding, "joint": searched}
    absent = {name for name, section in there.items() if not section}
    figures = _figures(results)
    if confidence:
        figures |= confidence.figures
    if swept and decoding:
        figures[decoding.figure] = accuracy_against_time(swept["rows"])
    return {
        "sections": [(id, name) for id, name in SECTIONS.items() if id not in absent],
        "run": run,
        "finished": moment(run.get("finished")),
        "took": duration(run.get("seconds")),
        "headline": _headline(winner, splits, chosen),
        "winner": winner,
        "chosen": chosen,
        "won": winners(results)[1],
        "selection": {"rule": "", "reason": ""} | (results.get("selection") or {}),
        "latency": _latency(chosen or winner, results),
        "splits": split_rows,
        "axis_low": percent(axis_low, digits=0),
        "rows": tables.leaderboard(results),
        "columns": tables.LEADERBOARD_COLUMNS,
        "statuses": {status: sum(trial["status"] == status for trial in trials) for status in ("failed", "stopped")},
        "unscored": sum(finite((trial.get("val") or {}).get("exact")) is None for trial in trials),
        "unfinished": unfinished_section(trials),
        "families": list(family_marks(trials).values()),
        "costs": costs.cost_section(results),
        "joint": searched,
        "parallel": parallel_coordinates(results),
        "importance": importance_section(results),
        "generalization": generalization(splits),
        "lengths": errors.split_colours(results),
        "figures": figures,
        "confusions": wrong[:15],
        "confusions_left": len(wrong[15:]),
        "confidence": confidence,
        "decoding": decoding,
        "examples": shown,
        "provenance": tables.provenance(results),
        "command": run.get("command") or "glyphrun sweep EXPERIMENT.yaml DATASET --run-dir NEW_FOLDER",
    }


def _figures(results: Results) -> dict[str, Figure | None]:
    held_out = [
        confusion
        for name in ("test", "unseen")
        for confusion in (results["splits"].get(name) or {}).get("confusions") or ()
    ]
    return {
        **costs.figures(results),
        **joint.figures(results),
        "curve-exact": curves.learning_curves(results, "exact"),
        "curve-loss": curves.learning_curves(results, "train_loss"),
        "lengths": errors.exact_by_length(results),
        "characters": errors.character_confusions(held_out),
    }


def _headline(winner: Mapping[str, Any] | None, splits: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> str:
    if winner is None:
        return "No trial met the latency budget with a score, so there is no winner."
    members = len(chosen["members"]) if chosen else 1
    who = str(winner["family"]) if members == 1 else f"An ensemble of {members}"
    test = splits.get("test") or splits.get("val")
    if not test:
        return f"{who} won."
    return f"{who} reads {percent(test['exact'])} of the {'test' if splits.get('test') else 'val'} set exactly."


def _latency(winner: Mapping[str, Any] | None, results: Results) -> dict[str, Any] | None:
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
        "within": p50 <= budget,
        "p50_at": round(100 * p50 / axis, 2),
        "p95_at": round(100 * p95 / axis, 2),
        "budget_at": round(100 * budget / axis, 2),
    }
