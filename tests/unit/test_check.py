from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glyphrun.data.check import check_dataset
from glyphrun.data.sample import Sample, file_sha256
from glyphrun.data.shards import write_samples
from glyphrun.images import encode_image


def picture(seed: int) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def problems(folder, *samples: Sample, charset: str | None = "0123456789") -> list[str]:
    write_samples(samples, folder, name="n", licence="l", description="d", charset=charset)
    return [str(problem) for problem in check_dataset(folder)]


def edit_card(folder, **changes) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_data_set_has_no_problems_and_reports_its_progress(small_dataset):
    calls: list[tuple[int, int]] = []
    assert check_dataset(small_dataset, lambda done, total: calls.append((done, total))) == []
    assert calls[-1] == (120, 120)


def test_no_card_is_the_only_problem(tmp_path):
    [problem] = check_dataset(tmp_path)
    assert problem.where == "dataset.json"
    assert "does not exist" in problem.what


def test_a_changed_byte_in_a_shard_is_found(small_dataset, tmp_path):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    shard = folder / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert any(p.where == "part-00000.parquet" and "sha256" in p.what for p in check_dataset(folder))


def test_a_missing_shard_and_a_stray_one_are_named(small_dataset, tmp_path):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    (folder / "part-00000.parquet").rename(folder / "part-00007.parquet")
    found = [str(problem) for problem in check_dataset(folder)]
    assert "part-00000.parquet: The file is missing." in found
    assert "part-00007.parquet: The card does not list this file." in found
    assert "dataset.json: It counts 60 samples in split 'train'; the shards hold 0." in found


def test_a_frame_that_does_not_decode_is_named_by_row_and_sample(tmp_path):
    [found] = problems(tmp_path / "s", Sample("a", (picture(0),), "1", "train"), Sample("b", (b"torn",), "2", "train"))
    assert found.startswith("part-00000.parquet row 1 (b): Frame 0 is not a readable")


def test_a_sample_without_frames_is_found(tmp_path):
    assert problems(tmp_path / "s", Sample("a", (), "1", "train")) == [
        "part-00000.parquet row 0 (a): It has no frames."
    ]


def test_a_group_in_two_splits_is_a_leak(tmp_path):
    found = problems(
        tmp_path / "s",
        Sample("a", (picture(0),), "1", "train", "writer 1 + writer 2"),
        Sample("b", (picture(1),), "1", "train", "writer 2"),
        Sample("c", (picture(2),), "1", "test", "writer 2"),
    )
    [problem] = found
    assert problem == (
        "part-00000.parquet row 2 (c): Its group 'writer 2' is in split 'test' and, at "
        "part-00000.parquet row 0 (a), in 'train'."
    )


def test_the_same_image_in_two_splits_is_a_leak_but_not_within_one(tmp_path):
    found = problems(
        tmp_path / "s",
        Sample("a", (picture(0),), "1", "train"),
        Sample("b", (picture(0),), "1", "train"),
        Sample("c", (picture(1), picture(0)), "1", "val"),
    )
    [problem] = found
    assert problem == (
        "part-00000.parquet row 2 (c): Frame 1 in split 'val' is the same file as one at "
        "part-00000.parquet row 0 (a) in 'train'."
    )


def test_texts_outside_the_charset_or_the_normal_form_are_found(tmp_path):
    found = problems(
        tmp_path / "s",
        Sample("a", (picture(0),), "1x", "train"),
        Sample("b", (picture(1),), "e\u0301", "train"),
        Sample("c", (picture(2),), None, "train"),
        charset="1é",
    )
    assert found == [
        (
            "part-00000.parquet row 0 (a): Its text '1x' holds 'x' (U+0078 LATIN SMALL LETTER X), "
            "which the card's charset lacks."
        ),
        "part-00000.parquet row 1 (b): Its text 'e\u0301' is not in the normal form NFC.",
    ]


def test_wrong_counts_rows_and_rejected_are_found(small_dataset, tmp_path):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    card = json.loads((folder / "dataset.json").read_text())
    card["shards"][0]["rows"] = 121
    edit_card(folder, shards=card["shards"], counts={**card["counts"], "val": 21}, rejected=3)
    assert [str(problem) for problem in check_dataset(folder)] == [
        "part-00000.parquet: It has 120 rows; the card says 121.",
        "dataset.json: It counts 21 samples in split 'val'; the shards hold 20.",
        "dataset.json: It counts 3 rejected rows; rejected.parquet has 0.",
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop_columns(["group"]), "It has no column 'group' of type string."),
        (
            lambda table: table.set_column(2, "text", table["sample_id"].cast(pa.binary())),
            "Its column 'text' has the type binary instead of string.",
        ),
        (lambda table: table.set_column(6, "meta", pa.array(["{"] * len(table))), "Its meta is not JSON"),
        (lambda table: table.set_column(0, "sample_id", pa.array(["x"] * len(table))), "Its sample_id is also that of"),
        (lambda table: table.set_column(3, "split", pa.nulls(len(table), pa.string())), "Its split is null."),
    ],
)
def test_a_shard_with_other_columns_or_repeated_ids_is_described(small_dataset, tmp_path, change, sentence):
    folder = shutil.copytree(small_dataset, tmp_path / "copy")
    shard = folder / "part-00000.parquet"
    # Two rows of one split: the change alone is to be found.
    table = change(pq.read_table(shard).slice(0, 2))
    pq.write_table(pa.Table.from_arrays(table.columns, names=table.column_names), shard)
    edit_card(folder, counts={"test": 2}, shards=[{"file": shard.name, "rows": 2, "sha256": file_sha256(shard)}])
    found = [str(problem) for problem in check_dataset(folder)]
    assert sentence in found[0]
    assert found[0].startswith("part-00000.parquet")
