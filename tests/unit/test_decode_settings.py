"""What a decode sweep crosses, and which of its points are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.sweeps.decode_settings import DecodeSpace, load_space, plan_points
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.points import DecodePoint, distinct_names, families_of, greedy_of


def plan(kind: str = "parseq", readers: tuple[str, ...] = ("one",), **space: Any) -> tuple[list[DecodePoint], int]:
    own = dict.fromkeys(readers, DecodeSettings())
    return plan_points(DecodeSpace.model_validate(space), own, dict.fromkeys(readers, kind))


def names(points: list[DecodePoint]) -> list[str]:
    return [point.name for point in points]


def test_every_value_is_crossed_with_every_other():
    points, left_out = plan(space={"search": ["beam"], "width": [3, 5], "length_penalty": [0.0, 1.0], "n_best": [2, 4]})
    assert len(points) == 8 and left_out == 0
    assert {(point.decode.width, point.decode.length_penalty, point.decode.n_best) for point in points} == {
        (width, penalty, n_best) for width in (3, 5) for penalty in (0.0, 1.0) for n_best in (2, 4)
    }


def test_settings_without_influence_fall_together():
    points, _ = plan(space={"search": ["greedy", "beam", "sample"], "width": [1, 3, 5], "temperature": [0.7, 1.2]})
    assert names(points) == [
        "one, greedy",
        "one, beam, width 3",
        "one, beam, width 5",
        "one, sample, temperature 0.7",
        "one, sample, temperature 1.2",
    ]
    assert len(plan(space={"abstain_below": [0.0, 0.5], "n_best": [1, 3]})[0]) == 1


def test_a_beam_of_one_is_greedy_only_where_that_is_exact():
    assert names(plan(space={"search": ["beam"], "width": [1]})[0]) == ["one, greedy"]
    assert names(plan("line-ctc", space={"search": ["beam"], "width": [1]})[0]) == ["one, beam"]
    assert names(plan(space={"search": ["beam"], "width": [1], "length_penalty": [1.0]})[0]) == [
        "one, beam, length penalty 1.0"
    ]


def test_what_ranks_every_answer_reads_all_widths_at_once():
    points, _ = plan("query-digits", space={"search": ["greedy", "beam"], "width": [3, 5, 7]})
    assert names(points) == ["one, greedy"]
    penalised, _ = plan("query-digits", base={"search": "beam", "length_penalty": 1.0}, space={"width": [3, 5, 7]})
    assert names(penalised) == ["one, beam, length penalty 1.0"]


def test_contradictions_are_left_out_and_counted():
    points, left_out = plan(space={"search": ["greedy", "beam"], "refine_iters": [0, 1]}, base={"width": 3})
    assert names(points) == ["one, greedy", "one, refine iters 1", "one, beam, width 3"]
    assert left_out == 1
    with pytest.raises(ExperimentError, match="no combination .* need window_frames"):
        plan(base={"windows": 3})


def test_members_vote_in_every_way_and_one_alone_in_none():
    points, _ = plan(
        readers=("one", "two"), members=[["one"], ["one", "two"]], ensemble_vote=["majority", "rover", "mbr"]
    )
    assert names(points) == [
        "one, greedy",
        "2 members, majority, greedy",
        "2 members, rover, greedy",
        "2 members, mbr, greedy",
    ]
    assert [point.members for point in plan(readers=("one", "two"))[0]] == [("one",), ("two",)]


def test_what_is_crossed_lies_over_each_members_own_settings():
    own = {
        "one": DecodeSettings(windows=4, window_frames=2, calibration={"temperature": 2.0}),
        "two": DecodeSettings(search="beam", width=3, n_best=2),
    }
    space = DecodeSpace(space={"search": ["beam"], "width": [5]}, members=[["one", "two"], ["two", "one"]])
    points, _ = plan_points(space, own, dict.fromkeys(own, "parseq"))
    for point, (first, second) in zip(points, (("one", "two"), ("two", "one")), strict=True):
        assert point.members == (first, second)
        assert point.ways["one"] == own["one"].model_copy(update={"search": "beam", "width": 5})
        assert point.ways["two"] == own["two"].model_copy(update={"width": 5})
        assert point.decode == point.ways[first] and point.others == (point.ways[second],)
    alike, _ = plan_points(space, dict.fromkeys(own, DecodeSettings()), dict.fromkeys(own, "parseq"))
    assert all(point.others == () and len(set(map(str, point.ways.values()))) == 1 for point in alike)


def test_a_setting_falls_away_for_the_member_alone_that_it_does_not_concern():
    own, kinds = dict.fromkeys(("digits", "text"), DecodeSettings()), {"digits": "query-digits", "text": "parseq"}
    space = DecodeSpace(space={"search": ["beam"], "width": [3, 5]}, members=[["digits", "text"]])
    points, _ = plan_points(space, own, kinds)
    assert [point.ways["digits"].search for point in points] == ["greedy", "greedy"]
    assert [point.ways["text"].width for point in points] == [3, 5]
    assert distinct_names(points) == [
        "2 members, majority, greedy, text: beam, width 3",
        "2 members, majority, greedy, text: beam, width 5",
    ]


def test_only_members_that_see_and_write_the_same_are_averaged():
    readers = ("one", "two", "other")
    own, kinds = dict.fromkeys(readers, DecodeSettings()), dict.fromkeys(readers, "parseq")
    inputs = {"one": "digits", "two": "digits", "other": "letters"}
    space = DecodeSpace(members=[["one", "two"], ["one", "other"]], ensemble_vote=["mbr", "average"])
    points, left_out = plan_points(space, own, kinds, inputs)
    assert [(point.members[1], point.ensemble_vote) for point in points] == [
        ("two", "mbr"),
        ("two", "average"),
        ("other", "mbr"),
    ]
    assert left_out == 1
    alone = DecodeSpace(members=[["one", "other"]], ensemble_vote=["average"])
    with pytest.raises(ExperimentError, match="one and other differ in their recognizer, codec or image processor"):
        plan_points(alone, own, kinds, inputs)


def test_an_average_is_one_search_with_the_settings_of_the_first():
    own = {"one": DecodeSettings(width=5, search="beam"), "two": DecodeSettings()}
    (point,), _ = plan_points(
        DecodeSpace(members=[["one", "two"]], ensemble_vote=["average"]), own, dict.fromkeys(own, "parseq")
    )
    assert point.decode == own["one"] and point.others == ()


def test_priors_of_lengths_can_be_crossed():
    points, _ = plan(space={"length_priors": [None, {1: 0.4, 2: 0.6}], "vote_floor": [0.0, 0.5]})
    assert len(points) == 4


def test_beams_that_differ_in_width_alone_are_one_family_the_widest_first():
    points, _ = plan(
        readers=("one", "two"),
        space={"search": ["greedy", "beam"], "width": [3, 7, 5], "length_penalty": [0.0, 1.0]},
        members=[["one"], ["one", "two"]],
    )
    keyed = {point.key({"one": "a", "two": "b"}, "val"): point for point in points}
    families = [[keyed[key] for key in family] for family in families_of(keyed)]
    assert sorted(map(len, families)) == [1, 1, 3, 3, 3, 3]
    for family in families:
        assert len({(point.members, point.decode.length_penalty) for point in family}) == 1
        assert [point.decode.width for point in family] in ([7, 5, 3], [1])
    assert [len(family[0].members) for family in families] == [2, 2, 1, 1, 2, 1], "those that take longest come first"
    windows = {"search": ["beam"], "width": [3, 5], "windows": [2], "window_frames": [2]}
    exits, _ = plan(space={**windows, "early_exit": ["decided"]})
    assert len(families_of({point.name: point for point in exits})) == 2, "a wider beam stops after other windows"


def test_greedy_of_is_the_first_member_alone_with_the_same_windows():
    point = DecodePoint(
        members=("two", "one"),
        decode=DecodeSettings(search="beam", width=5, windows=3, window_frames=2, early_exit="decided", vote="rover"),
        ensemble_vote="mbr",
    )
    greedy = greedy_of(point)
    assert greedy.members == ("two",) and greedy.ensemble_vote is None
    assert greedy.decode == DecodeSettings(windows=3, window_frames=2)
    (planned,), _ = plan(space={"search": ["greedy"]})
    assert greedy_of(planned) == planned


def test_points_of_one_name_tell_how_they_differ():
    points, _ = plan(space={"search": ["beam"], "width": [3], "calibration.temperature": [1.0, 2.0], "n_best": [1, 2]})
    assert len(set(distinct_names(points))) == 4
    assert distinct_names(points)[0] == "one, beam, width 3, n best 1, calibration 1.0"
    pairs, _ = plan(readers=("a", "b", "c"), members=[["a", "b"], ["a", "c"]])
    assert distinct_names(pairs) == ["2 members, majority, greedy, a+b", "2 members, majority, greedy, a+c"]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"space": {"widht": [3]}}, "no decode setting is called 'widht': did you mean width"),
        ({"base": {"serach": "beam"}}, "no decode setting is called 'serach': did you mean search"),
        ({"space": {"correction.lm_wight": [1]}}, "correction has no setting 'lm_wight': did you mean lm_weight"),
        ({"space": {"width.more": [1]}}, "width has no setting 'more'"),
        ({"members": [["three"]]}, "no reader is called 'three': there are one"),
        ({"space": {"search": ["greedy", "beem"]}}, "search: Input should be 'greedy', 'beam'.*, not 'beem'"),
        ({"space": {"search": ["beam"], "width": [3, "five"]}}, "width: Input should be a valid integer.*, not 'five'"),
        ({"space": {"early_exit": [None, "decide"]}}, "early_exit: .*, not 'decide'"),
        ({"base": {"correction": {"lexicn": "words.tsv"}}}, "correction has no setting 'lexicn': did you mean lexicon"),
        ({"members": [[]]}, "members: a group without readers"),
        ({"members": [["one", "one"]]}, "members: one votes twice"),
    ],
)
def test_names_that_there_are_not_are_told_with_the_nearest(space, told):
    with pytest.raises(ExperimentError, match=told):
        plan(**space)


def test_a_settings_file_says_what_is_wrong_in_it(tmp_path: Path):
    path = tmp_path / "decode.yaml"
    path.write_text("spaces: {width: [3]}\n")
    with pytest.raises(ExperimentError, match=r"decode.yaml: spaces: .*did you mean space"):
        load_space(path)
    path.write_text("space: {width: 3}\n")
    with pytest.raises(ExperimentError, match=r"decode.yaml: space.width: .*list"):
        load_space(path)
    with pytest.raises(ExperimentError, match="cannot be read"):
        load_space(tmp_path / "none.yaml")


def test_files_beside_a_settings_file_are_found_from_anywhere(tmp_path: Path):
    (tmp_path / "words.tsv").write_text("12\t1\n")
    path = tmp_path / "decode.yaml"
    path.write_text(
        "base: {correction: {lexicon: words.tsv}}\n"
        "space: {correction.lexicon: [words.tsv, elsewhere.tsv], correction: [null, {lexicon: words.tsv}]}\n"
    )
    space, words = load_space(path), str(tmp_path / "words.tsv")
    assert space.base == {"correction": {"lexicon": words}}
    assert space.space == {"correction.lexicon": [words, "elsewhere.tsv"], "correction": [None, {"lexicon": words}]}


def test_a_row_is_known_by_weights_items_settings_and_the_content_of_files(tmp_path: Path):
    words = tmp_path / "words.tsv"
    words.write_text("12\t1\n")
    (plain, corrected), _ = plan(space={"correction": [None, {"lexicon": str(words)}]})
    keys = {plain.key({"one": "a"}, "val"), plain.key({"one": "b"}, "val"), plain.key({"one": "a"}, "test")}
    keys.add(corrected.key({"one": "a"}, "val"))
    words.write_text("13\t1\n")
    keys.add(corrected.key({"one": "a"}, "val"))
    assert len(keys) == 5
    assert corrected.name == "one, corrected by words.tsv"


def test_the_example_can_be_read_by_any_recognizer():
    space = load_space(Path(__file__).parents[2] / "experiments" / "decode.yaml")
    for kind, expected in (("parseq", 3 * (1 + 3 * 2 + 2)), ("query-digits", 3 * (1 + 1 + 2))):
        points, left_out = plan_points(space, {"one": DecodeSettings()}, {"one": kind})
        assert (len(points), left_out) == (expected, 0)
        assert len(set(distinct_names(points))) == expected
