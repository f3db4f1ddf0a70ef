from __future__ import annotations

import json

import pytest
import torch

from glyphrun.evaluation.cost_table import BASELINE, CostSettings, cost_json, cost_table, measure
from glyphrun.evaluation.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_agree_with_what_was_published(name):
    threads = torch.get_num_threads()
    try:
        row = measure(name, "float32", CostSettings(device="cpu", frames=1, windows=1))
    finally:
        torch.set_num_threads(threads)
    said = PUBLISHED[name]
    assert said.parameters[0] * 0.99 <= row.parameters / 1e6 <= said.parameters[1] * 1.01
    # Published readings recompute keys and values and read longer texts: what a reading adds to its encoder is less here.
    assert row.encoder_multiply_adds < row.multiply_adds <= said.multiply_adds[1]
    assert row.multiply_adds >= 0.85 * said.multiply_adds[0]
    if said.encoder:
        assert row.encoder_multiply_adds == pytest.approx(said.encoder, rel=0.005)
    assert row.ms > 0 and row.per_second >= 0.5e3 / row.ms and row.peak_mib > 0


@pytest.mark.slow
def test_rows_stand_beside_the_baseline_and_beside_what_was_published():
    settings = CostSettings(device="cpu", frames=2, windows=2)
    rows = cost_table(["query-digits-nano", BASELINE], ["float32", "int8"], settings)
    assert [(row.name, row.precision) for row in rows] == [
        (BASELINE, "float32"),
        ("query-digits-nano", "float32"),
        ("query-digits-nano", "int8"),
        (BASELINE, "int8"),
    ]
    assert rows[0].relative == 1
    assert rows[1].relative > 10
    assert rows[0].tracklet_ms > 1.2 * rows[0].ms
    table = json.loads(json.dumps(cost_json(rows, settings)))
    assert table["published"][BASELINE]["multiply_adds"] == [3.26, 3.26]
    assert table["measured"][1]["name"] == "query-digits-nano"


@pytest.mark.parametrize(
    ("names", "precisions", "sentence"),
    [(["parsec-tiny"], ["float32"], "did you mean parseq-tiny"), (["parseq-tiny"], ["int4"], "choose from float32")],
)
def test_a_wrong_name_is_refused_before_anything_is_measured(names, precisions, sentence):
    with pytest.raises(ValueError, match=sentence):
        cost_table(names, precisions, CostSettings())
