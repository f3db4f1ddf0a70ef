"""Who survives a sweep, and in which ways they are read."""

from pathlib import Path

import pytest

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.sweeps.decode_search import DecodeSearch
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.joint import surviving
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.readers import Known
from glyphrun.sweeps.trained import Trained
from glyphrun.sweeps.trials import Outcome, TrialRecord
from glyphrun.sweeps.ways import measures_of

CANDIDATE = {"family": "digits", "recognizer": "query-digits-nano"}


def experiment(**changes: object) -> Experiment:
    return Experiment.model_validate({"name": "joint", "candidates": [CANDIDATE], "trials": 4, **changes})


def known(*names: str, kind: str = "parseq") -> Known:
    return Known(dict.fromkeys(names, DecodeSettings()), dict.fromkeys(names, kind), dict.fromkeys(names, "alike"))


def test_survivors_read_alone_and_in_every_ensemble_of_the_sizes_that_are_asked_for():
    def groups(**declared: object) -> list[str]:
        return ["".join(group) for group in DecodeSearch.model_validate(declared).groups(["a", "b", "c"])]

    assert groups() == ["a", "b", "c", "ab", "ac", "bc", "abc"]
    assert groups(ensembles=[3]) == ["a", "b", "c", "abc"]
    assert groups(ensembles=False) == ["a", "b", "c"]
    assert list(DecodeSearch(ensembles=[2, 3]).groups(["a"])) == [("a",)]


def test_ways_are_crossed_for_every_group_and_each_survivor_also_reads_greedily():
    search = DecodeSearch(space={"search": ["beam"], "width": [3, 5]}, ensemble_vote=["majority", "average"])
    points, left_out = search.points(["a", "b"], known("a", "b"))
    assert [point.members for point in points].count(("a", "b")) == 2 * 2
    assert [point.name for point in points if point.members == ("b",)] == [
        "b, beam, width 3",
        "b, beam, width 5",
        "b, greedy",
    ]
    assert len(points) == 2 * 3 + 4 and left_out == 0


def test_what_cannot_be_averaged_is_left_out_and_counted():
    search = DecodeSearch(ensemble_vote=["majority", "average"])
    readers = Known({"a": DecodeSettings(), "b": DecodeSettings()}, {"a": "parseq", "b": "query-digits"}, {})
    points, left_out = search.points(["a", "b"], readers)
    assert [point.ensemble_vote for point in points] == [None, None, "majority"] and left_out == 1


def test_ways_are_counted_before_anyone_has_survived():
    search = DecodeSearch(space={"search": ["greedy", "beam"], "width": [3, 5]}, survivors=2)
    beams, ranks = ("parseq", DecodeSettings()), ("query-digits", DecodeSettings())
    assert search.counts(9, {"beams": beams}) == (3 * 3, 3 * 3)
    assert search.counts(1, {"beams": beams}) == (3, 3)
    # What ranks every answer reads all widths at once; a pair of both kinds has three ways.
    assert search.counts(9, {"beams": beams, "ranks": ranks}) == (3 * 1, 3 * 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decode_search": {"survivors": 2, "ensembles": [3]}}, "ensembles of 3 cannot be made of 2 survivors"),
        ({"decode_search": {"ensembles": [2, 2]}}, "name each size once"),
        ({"decode_search": {"base": {"calibration": {"temperature": 2.0}}}}, "decode_search states calibration"),
        ({"decode_search": {"space": {"abstain_below": [0.5]}}}, "decode_search states abstain_below"),
        (
            {"decode_search": {}, "candidates": [{**CANDIDATE, "decode": {"abstain_below": 0.5}}]},
            "state abstain_for_precision",
        ),
        ({"pick": {"kind": "cheapest", "by": "cost"}}, "needs budget.price_per_hour"),
        ({"pick": {"kind": "dearest"}}, "the kind of a pick is best or cheapest"),
        ({"budget": {"cost_per_million": 1}}, "cost_per_million needs price_per_hour"),
    ],
)
def test_a_search_that_could_not_be_carried_out_is_refused_with_its_reason(changes, said):
    with pytest.raises(ValueError, match=said):
        experiment(**changes)


def test_the_front_is_about_the_objectives_and_whatever_the_budget_or_the_rule_goes_by():
    assert measures_of(experiment()) == ["exact", "ms"]
    assert measures_of(experiment(objectives=["cer", "memory"])) == ["cer", "memory", "ms"]
    limited = experiment(
        budget={"memory_mib": 9, "price_per_hour": 1}, pick={"kind": "cheapest", "by": "cost"}, decode_search={}
    )
    assert measures_of(limited) == ["exact", "ms", "memory", "cost"]


def trained(of: Experiment, front: set[int], *scores: tuple[float, float, int]) -> Trained:
    """scores: exact match, ms and parameters of each trial; front: the numbers of those on it."""
    records = [
        TrialRecord(trial, Path(trial.id), Outcome("finished"), [])
        for trial, _ in zip(plan_trials(of), scores, strict=True)
    ]
    ids = [record.trial.id for record in records]
    values = {
        id: {"exact": exact, "cer": 1 - exact, "ms": ms, "memory": 1.0}
        for id, (exact, ms, _) in zip(ids, scores, strict=True)
    }
    costs = {id: {"parameters": parameters} for id, (_, _, parameters) in zip(ids, scores, strict=True)}
    return Trained(records, records, costs, values, {ids[number] for number in front})


def test_the_most_accurate_survive_and_equals_by_what_no_clock_decides():
    of = experiment(decode_search={"survivors": 3}, budget={"latency_ms": 20})
    known = trained(of, {0, 1}, (0.9, 9.0, 50), (0.9, 9.5, 40), (0.99, 21.0, 10), (0.8, 1.0, 10))
    # The third is the most accurate and over the budget, so it would come last.
    assert [name[:3] for name in surviving(of, known)] == ["002", "001", "004"]


def test_of_several_objectives_those_on_the_front_survive_first():
    of = experiment(decode_search={"survivors": 2}, objectives=["exact", "ms"], budget={"latency_ms": 20})
    known = trained(of, {0, 3}, (0.9, 9.0, 50), (0.89, 9.5, 40), (0.88, 9.9, 10), (0.7, 1.0, 10))
    assert [name[:3] for name in surviving(of, known)] == ["001", "004"]
