from __future__ import annotations

import json

import pyarrow as pa
import pytest

from glyphrun.data.sample import (
    DatasetError,
    Sample,
    dataset_hash,
    iterate_samples,
    read_card,
    samples_table,
)
from glyphrun.data.shards import ROWS_PER_SHARD, DatasetWriter, write_samples

ABOUT = {"name": "numbers", "licence": "CC0", "description": "Made up."}


def sample(number: int, split: str = "train", text: str | None = "7") -> Sample:
    return Sample(f"s{number:05d}", (b"first", b"second"), text, split, f"writer {number}", "here", {"n": number})


def test_samples_come_back_as_they_were_written_in_their_order(tmp_path):
    samples = [sample(1), sample(0, "test", None), sample(2, "test", ""), sample(3, text='é "x"\t,')]
    write_samples(samples, tmp_path / "set", **ABOUT)
    assert list(iterate_samples(tmp_path / "set")) == samples
    assert list(iterate_samples(tmp_path / "set", "test")) == samples[1:3]


def test_the_card_counts_splits_and_collects_the_charset(tmp_path):
    card = write_samples(
        [sample(0, text="ba"), sample(1, "val", "éa"), sample(2, "val", None)], tmp_path / "s", **ABOUT
    )
    assert card == read_card(tmp_path / "s")
    assert card.counts == {"train": 1, "val": 2}
    assert (card.charset, card.normal_form, card.schema_version) == ("abé", "NFC", 1)


def test_the_same_rows_give_the_same_bytes_however_they_were_divided(tmp_path):
    samples = [sample(number) for number in range(ROWS_PER_SHARD + 300)]
    for name, step in [("by-one", 1), ("by-77", 77), ("at-once", len(samples))]:
        with DatasetWriter(tmp_path / name, **ABOUT) as writer:
            for start in range(0, len(samples), step):
                writer.write(samples_table(samples[start : start + step]))
    hashes = {dataset_hash(tmp_path / name) for name in ("by-one", "by-77", "at-once")}
    assert len(hashes) == 1
    assert [shard.rows for shard in read_card(tmp_path / "by-one").shards] == [ROWS_PER_SHARD, 300]
    write_samples([*samples[:-1], sample(9999)], tmp_path / "other", **ABOUT)
    assert dataset_hash(tmp_path / "other") not in hashes


def test_a_run_that_fails_leaves_nothing_behind_and_the_earlier_data_set_untouched(tmp_path):
    def failing():
        yield sample(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(failing(), tmp_path / "new", **ABOUT)
    assert list(tmp_path.iterdir()) == []
    write_samples([sample(1)], tmp_path / "set", **ABOUT)
    with pytest.raises(KeyboardInterrupt):
        write_samples(failing(), tmp_path / "set", overwrite=True, **ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [found.sample_id for found in iterate_samples(tmp_path / "set")] == ["s00001"]


def test_only_a_data_set_is_overwritten_and_only_when_asked(tmp_path):
    write_samples([sample(1)], tmp_path / "set", **ABOUT)
    with pytest.raises(DatasetError, match="already holds a data set"):
        write_samples([sample(2)], tmp_path / "set", **ABOUT)
    write_samples([sample(2)], tmp_path / "set", overwrite=True, **ABOUT)
    assert next(iterate_samples(tmp_path / "set")).sample_id == "s00002"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="something other"):
        write_samples([sample(2)], tmp_path / "photos", overwrite=True, **ABOUT)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"precious"


def test_rows_with_a_reason_and_repeated_ids_are_kept_aside_and_counted(tmp_path):
    table = samples_table([sample(0), sample(1), sample(0, text="8")])
    table = table.append_column("reason", pa.array([None, "It is torn.", None], pa.string()))
    with DatasetWriter(tmp_path / "set", **ABOUT) as writer:
        writer.write(table)
    assert writer.card.counts == {"train": 1}
    assert writer.card.rejected == 2
    rejected = pa.parquet.read_table(tmp_path / "set" / "rejected.parquet").to_pylist()
    assert {(row["sample_id"], row["reason"]) for row in rejected} == {
        ("s00001", "It is torn."),
        ("s00000", "This sample_id was used by an earlier row."),
    }
    assert rejected[0]["frames"] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "schema version 2; this program reads version 1"),
        ({"liscence": "x"}, "liscence"),
        ({"counts": {"train": "many"}}, r"counts\.train"),
        ({"shards": [{"file": "../elsewhere.parquet", "rows": 1, "sha256": "0" * 64}]}, r"shards\.0\.file"),
    ],
)
def test_a_bad_card_is_refused_with_its_file_and_key(tmp_path, change, sentence):
    write_samples([sample(1)], tmp_path / "set", **ABOUT)
    path = tmp_path / "set" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=rf"dataset\.json.*{sentence}"):
        read_card(tmp_path / "set")


def test_a_folder_without_card_a_missing_shard_and_an_unknown_split_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.json does not exist"):
        read_card(tmp_path)
    write_samples([sample(1)], tmp_path / "set", **ABOUT)
    with pytest.raises(DatasetError, match="no split 'tset'; it has train"):
        next(iterate_samples(tmp_path / "set", "tset"))
    (tmp_path / "set" / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"part-00000\.parquet cannot be read"):
        next(iterate_samples(tmp_path / "set"))


def test_one_sample_may_come_from_several_groups():
    assert Sample("a", (b"",), "12", "train", "digit image 4 + digit image 90").groups == (
        "digit image 4",
        "digit image 90",
    )
    assert Sample("a", (b"",), "12", "train").groups == ()
