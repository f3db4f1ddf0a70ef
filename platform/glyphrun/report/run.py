"""The report of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from glyphrun.data.sample import iterate_samples
from glyphrun.report.render import Example, render_report

DECODE = Path("decode") / "decode.json"


def report_run(run_dir: Path) -> Path:
    """Write report.html from results.json, the examples and the decode sweep beside it, if there is one.

    Raises FileNotFoundError for an unfinished run.
    """
    path = run_dir / "results.json"
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} has no results.json: the sweep has not finished, run it again to go on")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): copy the run again") from None
    frames = {sample.sample_id: sample.frames for sample in iterate_samples(run_dir / "examples")}
    examples = [
        Example(
            sample_id=shown["sample_id"],
            split=shown["split"],
            truth=shown["truth"],
            reading=shown["reading"],
            confidence=shown["confidence"],
            frames=frames[shown["sample_id"]],
            votes=tuple((text, weight) for text, weight in shown["votes"]),
        )
        for shown in results["examples"]
    ]
    out = run_dir / "report.html"
    decode = run_dir / DECODE
    swept = json.loads(decode.read_text(encoding="utf-8")) if decode.exists() else None
    render_report(results, examples, out, decode=swept)
    return out
