"""``glyphrun decode-sweep`` and ``glyphrun validate``: what they read, write and say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from commands import refusal, said, shared_ray
from tiny_bundles import save_tiny_bundle

TINY = {"encoder": {"width": 16, "heads": 2}, "decoder_heads": 2}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("bundles")
    return [
        str(save_tiny_bundle(folder / name, "parseq-nano", {**TINY, "fusion": "mean"}, seed=seed))
        for seed, name in enumerate(("one", "two"))
    ]


@pytest.fixture(scope="module")
def ray() -> Iterator[str]:
    with shared_ray() as address:
        yield address


@pytest.mark.slow
def test_crossed_settings_are_shown_in_a_table_and_on_a_page(bundles, small_dataset, ray, tmp_path):
    (tmp_path / "words.tsv").write_text("".join(f"{number}\t1\n" for number in range(1, 10)))
    settings = tmp_path / "decode.yaml"
    settings.write_text(
        "space: {search: [greedy, beam], width: [3, 40], refine_iters: [0, 1], correction: [null, {lexicon: words.tsv}]}\n"
        "members: [[one], [one, two]]\n"
    )
    out = tmp_path / "out"
    command = ["decode-sweep", *bundles, str(small_dataset), "--settings", str(settings), "--out", str(out)]
    shown = said(*command, ray=ray)
    swept = json.loads((out / "decode.json").read_text())
    assert len(swept["rows"]) == 16 and swept["split"] == "val"
    assert "8 combinations contradict themselves and were left out" in " ".join(shown.split())
    page = (out / "decode.html").read_text("utf-8")
    assert all(row["name"] in page for row in swept["rows"])


@pytest.mark.slow
def test_quick_validation_answers_its_two_questions_and_recommends(bundles, small_dataset, ray, tmp_path):
    out = tmp_path / "results.json"
    asked = ["--out", str(out), "--quick", "--budget-ms", "0.0001", "--graphemes"]
    shown = said("validate", *bundles, str(small_dataset), *asked, ray=ray)
    results = json.loads(out.read_text())
    assert results["cer_unit"] == "graphemes"
    assert len(results["methods"]) == 11
    for method in results["methods"]:
        assert {"cer", "wer", "exact", "cer_ci", "exact_ci", "ms", "seconds_per_item", "items_per_s"} <= set(method)
        assert method["n"] == 20
    assert [one["name"] is None for one in results["recommendations"]] == [False, False, True]
    told = " ".join(shown.split())
    assert "Does the beam help? It" in told and "Does the ensemble help? It" in told
    assert "best within 0.0001 ms: nothing. none: " in told
    assert (tmp_path / "results.html").exists()


def test_what_cannot_be_is_one_sentence(bundles, small_dataset, tmp_path):
    settings = tmp_path / "decode.yaml"
    settings.write_text("space: {widht: [3]}\n")
    for arguments, told in (
        (["decode-sweep", bundles[0], str(small_dataset), "--settings", str(settings)], "did you mean width?"),
        (["validate", str(tmp_path), str(small_dataset)], "neither a bundle"),
        (["validate", str(small_dataset)], "name at least one bundle or run, and last the folder of a data set"),
        (["validate", bundles[0], bundles[0], str(small_dataset)], "both called one"),
        (["validate", bundles[0], str(small_dataset), "--out", "results"], "--out results: it must end in .json"),
        (["validate", bundles[0], str(small_dataset), "--lexicon", "none.tsv"], "--lexicon: there is no none.tsv"),
        (["validate", bundles[0], str(small_dataset), "--confusions", str(settings)], "give --lexicon too"),
    ):
        assert told in refusal(*arguments)
