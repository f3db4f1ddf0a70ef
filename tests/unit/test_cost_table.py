from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from glyphrun.evaluation.cost_table import CostSettings, cost_json, cost_table, count
from glyphrun.evaluation.published import PUBLISHED
from glyphrun.models.hub import HubError


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_agree_with_what_was_published(name):
    counts, said = count(name, CostSettings()), PUBLISHED[name]
    assert said.parameters[0] * 0.99 <= counts.parameters / 1e6 <= said.parameters[1] * 1.01
    # Published readings recompute keys and values and read longer texts: what a reading adds to its encoder is less here.
    assert counts.encoder_multiply_adds < counts.multiply_adds <= said.multiply_adds[1]
    assert counts.multiply_adds >= 0.85 * said.multiply_adds[0]
    if said.encoder:
        assert counts.encoder_multiply_adds == pytest.approx(said.encoder, rel=0.005)


@pytest.fixture
def one_core() -> Iterator[None]:
    """Processes that are started have one core: threads on two would wait for each other wherever other tests run, too."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_rows_stand_beside_the_baseline_and_beside_what_was_published(one_core):
    settings = CostSettings(device="cpu", frames=2, windows=2, baseline="parseq-nano", seconds=0)
    rows = cost_table(["query-digits-nano"], ["int8"], settings)
    assert [(row.name, row.precision) for row in rows] == [("parseq-nano", "float32"), ("query-digits-nano", "int8")]
    assert rows[0].relative == 1
    for row in rows:
        assert min(row.ms, row.per_second, row.tracklet_ms, row.peak_mib) > 0
        assert row.relative == pytest.approx(row.per_second / rows[0].per_second)
    table = json.loads(json.dumps(cost_json(rows, settings)))
    assert table["measured"][1]["name"] == "query-digits-nano"
    assert table["published"] == {}


@pytest.mark.parametrize(
    ("names", "precisions", "sentence"),
    [(["parsec-tiny"], ["float32"], "did you mean parseq-tiny"), (["parseq-tiny"], ["int4"], "choose from float32")],
)
def test_a_wrong_name_is_refused_before_anything_is_measured(names, precisions, sentence):
    with pytest.raises(ValueError, match=sentence):
        cost_table(names, precisions, CostSettings())


def test_a_hub_model_that_cannot_be_had_is_told_before_anything_is_measured(tmp_path):
    settings = CostSettings(device="cpu", baseline="query-digits-nano", sources={"trocr-small": str(tmp_path / "gone")})
    told: list[str] = []
    with pytest.raises(HubError, match="there is no folder .*gone"):
        cost_table(["trocr-small"], ["float32"], settings, told.append)
    assert told == ["counting query-digits-nano", "counting trocr-small"]
