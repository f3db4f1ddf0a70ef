"""``glyphrun evaluate`` on labels that a recognizer cannot write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from glyphrun.cli import app
from glyphrun.data.sample import iterate_samples
from glyphrun.data.shards import write_samples
from tiny_bundles import save_tiny_bundle


def test_labels_that_no_reading_can_equal_are_told_beside_the_scores(small_dataset: Path, tmp_path: Path):
    bundle = save_tiny_bundle(tmp_path / "digits", "query-digits-nano")
    samples = [replace(sample, split="val") for sample in iterate_samples(small_dataset, "val")][:4]
    labels = ["7", "X7", "123", "42"]
    written = [replace(sample, text=text) for sample, text in zip(samples, labels, strict=True)]
    write_samples(
        iter(written), tmp_path / "data", name="plates", licence="none", description="Plates.", charset="0123456789X"
    )
    for options in ([], ["--json"]):
        done = CliRunner().invoke(app, ["evaluate", str(bundle), str(tmp_path / "data"), *options])
        assert done.exit_code == 0, done.output
        assert done.stderr == (
            "glyphrun: 2 of 4 labels are beyond what this recognizer can write; the first: 'X' (U+0058 LATIN CAPITAL "
            "LETTER X) at position 0 of 'X7' is not in the charset of 10 characters.\n"
        )
    assert json.loads(done.stdout)["n"] == 4
    told = CliRunner().invoke(app, ["evaluate", str(bundle), str(small_dataset)])
    assert (told.exit_code, told.stderr) == (0, "")
