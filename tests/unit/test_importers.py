"""Reading labels and files; writing through Ray is in integration/test_stream.py."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glyphrun.data.importers import import_dataset
from glyphrun.data.importers.files import FileError, SourceFiles
from glyphrun.data.importers.rows import IMPORT_SCHEMA, ImportRow, load_rows
from glyphrun.data.importers.soccernet import read_soccernet
from glyphrun.data.importers.table import read_table
from glyphrun.data.sample import DatasetError
from glyphrun.images import encode_image


def picture(shade: int) -> bytes:
    return encode_image(np.full((4, 6, 3), shade, np.uint8))


def tree(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def rows_of(folder: Path, reader=read_table) -> list[ImportRow]:
    with SourceFiles(folder) as files:
        return list(reader(files, "train"))


def loaded(folder: Path, *rows: ImportRow, charset: str | None = None, max_length: int = 20) -> list[dict]:
    table = pa.Table.from_pylist([row.to_arrow() for row in rows], schema=IMPORT_SCHEMA)
    return load_rows(table, str(folder), charset, max_length).to_pylist()


def test_a_tsv_keeps_quotes_commas_accents_and_escaped_tabs_as_they_are(tmp_path):
    labels = 'file\ttext\tsplit\twriter\r\na.png\t" L’été, dit-il "\ttrain\tw1\r\nb.png\ta\\tb\\\\n\\x\tval\tw2\r\n'
    first, second = rows_of(tree(tmp_path, {"labels.tsv": "\ufeff" + labels}))
    assert (first.text, first.split, first.group, first.files) == ('" L’été, dit-il "', "train", "w1", ("a.png",))
    assert (first.source, first.sample_id) == ("labels.tsv line 2", "a.png")
    assert second.text == "a\tb\\n\\x"


def test_a_csv_follows_its_quotes_and_counts_lines_within_them(tmp_path):
    labels = 'text,file\n"a ""b"", c",1.png\n"two\nlines",2.png\nlast,3.png\n'
    rows = rows_of(tree(tmp_path, {"labels.csv": labels}))
    assert [row.text for row in rows] == ['a "b", c', "two\nlines", "last"]
    assert [row.source for row in rows] == ["labels.csv line 2", "labels.csv line 3", "labels.csv line 5"]


@pytest.mark.parametrize("content", [[{"file": "a.png", "text": "07", "split": "val"}], {"a.png": "07"}])
def test_json_labels_are_a_list_or_one_object(tmp_path, content):
    [row] = rows_of(tree(tmp_path, {"labels.json": json.dumps(content)}))
    assert (row.sample_id, row.text, row.files) == ("a.png", "07", ("a.png",))


def test_other_columns_go_to_meta_and_a_group_column_is_the_group(tmp_path):
    [row] = rows_of(tree(tmp_path, {"labels.tsv": "file\ttext\tgroup\tcamera\na.png\t1\tmatch 4\tleft\n"}))
    assert row.group == "match 4"
    assert row.meta == {"camera": "left"}


def test_bad_rows_have_a_reason_with_their_line_and_the_others_none(tmp_path):
    labels = "file\ttext\na.png\t1\nb.png\t\n\t3\nc.png\n" + "d.png\t4\textra\ne.png\t5\n"
    rows = rows_of(tree(tmp_path, {"labels.tsv": labels}))
    assert [row.reason for row in rows] == [
        None,
        "labels.tsv line 3: The text is empty.",
        "labels.tsv line 4: The file's name is empty.",
        "labels.tsv line 5: It has 1 fields where the header has 2.",
        "labels.tsv line 6: It has 3 fields where the header has 2.",
        None,
    ]


def test_a_json_number_is_refused_since_its_zeros_may_be_lost(tmp_path):
    content = [{"file": "a.png", "text": 7}, "b.png", {"file": "c.png", "text": None}]
    rows = rows_of(tree(tmp_path, {"labels.json": json.dumps(content)}))
    assert [row.reason for row in rows] == [
        "labels.json row 1: The text is 7, which is no string.",
        "labels.json row 2: It is 'b.png', which is no object.",
        "labels.json row 3: The text is empty.",
    ]


def test_the_same_image_in_two_rows_is_two_samples(tmp_path):
    rows = rows_of(tree(tmp_path, {"labels.tsv": "file\ttext\na.png\t1\na.png\t2\n"}))
    assert [row.sample_id for row in rows] == ["a.png", "a.png#3"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"photo.png": "x"}, "has no labels.tsv"),
        ({"labels.tsv": "a", "labels.csv": "b"}, "has labels.csv and labels.tsv"),
        ({"labels.tsv": ""}, "labels.tsv is empty"),
        ({"labels.tsv": "path\ttext\n"}, "labels.tsv line 1 is the header and has no column 'file'"),
        ({"labels.tsv": "file\ttext\ttext\n"}, "'text' more than once"),
        ({"labels.tsv": b"file\ttext\na\t\xe9\n"}, "labels.tsv line 2 is not UTF-8"),
        ({"labels.csv": 'file,text\na,"open\n'}, "labels.csv line 2: "),
        ({"labels.json": "{"}, "labels.json is not JSON"),
        ({"labels.json": "7"}, "labels.json is a list"),
    ],
)
def test_a_label_file_that_is_no_table_is_refused_by_name_and_line(tmp_path, files, sentence):
    with pytest.raises(DatasetError, match=sentence):
        rows_of(tree(tmp_path, files))


def test_a_zip_with_one_folder_around_it_reads_like_the_folder(tmp_path):
    tree(tmp_path / "pack", {"labels.tsv": "file\ttext\nimages/a.png\t1\n", "images/a.png": picture(9)})
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.write(tmp_path / "pack" / "labels.tsv", "pack/labels.tsv")
        archive.write(tmp_path / "pack" / "images" / "a.png", "pack/images/a.png")
        archive.writestr("__MACOSX/pack/labels.tsv", "junk")
    rows = rows_of(tmp_path / "pack.zip")
    assert rows[0].files == ("pack/images/a.png",)
    [row] = loaded(tmp_path / "pack.zip", *rows)
    assert (row["frames"], row["reason"]) == ([picture(9)], None)


def test_labels_cannot_name_files_elsewhere(tmp_path):
    tree(tmp_path, {"secret.png": picture(1), "pack/a.png": picture(2)})
    with SourceFiles(tmp_path / "pack") as files:
        assert files.read("a.png") == picture(2)
        for name in ("../secret.png", str(tmp_path / "secret.png"), "a.png/../../secret.png", ""):
            with pytest.raises(FileError, match="not a name inside pack"):
                files.read(name)
        with pytest.raises(FileError, match=r"b\.png is missing from pack"):
            files.read("b.png")


def test_a_damaged_member_of_a_zip_is_a_fault_of_that_file_alone(tmp_path):
    path = tmp_path / "pack.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", picture(1))
        archive.writestr("b.png", picture(2))
    path.write_bytes(path.read_bytes().replace(picture(1)[-30:], bytes(30), 1))
    with SourceFiles(path) as files:
        with pytest.raises(FileError, match=r"a\.png cannot be read"):
            files.read("a.png")
        assert files.read("b.png") == picture(2)


def test_a_source_that_is_neither_folder_nor_zip_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        SourceFiles(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="neither a folder nor a readable zip"):
        SourceFiles(tree(tmp_path, {"pack.rar": "Rar!"}) / "pack.rar")
    with pytest.raises(DatasetError, match="no importer 'tabel'; there are table, soccernet"):
        import_dataset("tabel", tmp_path, tmp_path / "out")


def test_images_and_texts_are_checked_row_by_row(tmp_path):
    tree(tmp_path, {"a.png": picture(1), "torn.png": picture(2)[:40], "empty.png": b"", "note.txt": "x"})
    cases = {
        "a.png": ("12", None),
        "missing.png": ("12", f"missing.png is missing from {tmp_path.name}."),
        "torn.png": ("12", "torn.png is "),
        "empty.png": ("12", "empty.png is empty"),
        "note.txt": ("12", "note.txt is not a readable"),
    }
    rows = loaded(tmp_path, *(ImportRow(file, (file,), text, "train", "here") for file, (text, _) in cases.items()))
    for row, (_, reason) in zip(rows, cases.values(), strict=True):
        assert (row["reason"] or "").startswith(reason or "") and bool(row["reason"]) == bool(reason)
    assert rows[0]["frames"] == [picture(1)]
    assert rows[2]["frames"] == [picture(2)[:40]]
    assert rows[1]["frames"] == []


def test_texts_too_long_or_outside_the_charset_are_rejected_with_their_image_kept(tmp_path):
    tree(tmp_path, {"a.png": picture(1)})
    texts = ["12", "123", "1x"]
    rows = loaded(
        tmp_path, *(ImportRow(t, ("a.png",), t, "train", "here") for t in texts), charset="0123456789", max_length=2
    )
    assert [row["reason"] for row in rows] == [
        None,
        "The text has 3 characters; the limit is 2.",
        "'x' (U+0078 LATIN SMALL LETTER X) at position 1 of '1x' is not in the charset of 10 characters.",
    ]
    assert all(row["frames"] == [picture(1)] for row in rows)


def test_a_text_in_another_normal_form_is_normalised_and_the_given_one_kept(tmp_path):
    tree(tmp_path, {"a.png": picture(1)})
    [row] = loaded(tmp_path, ImportRow("a", ("a.png",), "e\u0301", "train", "here"))
    assert row["text"] == "é"
    assert json.loads(row["meta"]) == {"text_as_given": "e\u0301"}


def soccernet(folder: Path) -> Path:
    truth = {"0": 10, "1": -1, "2": 7, "10": 100, "11": 5}
    return tree(
        folder,
        {
            "train/train_gt.json": json.dumps(truth),
            **{f"train/images/0/0_{frame}.jpg": picture(frame) for frame in (1, 2, 10)},
            "train/images/1/1_1.jpg": picture(20),
            "train/images/2/2_1.jpg": picture(21),
            "train/images/2/2_2.jpg": b"torn",
            "train/images/10/10_1.jpg": picture(22),
            "train/images/3/3_1.jpg": picture(23),
            "challenge/images/0/0_1.jpg": picture(24),
        },
    )


def test_soccernet_tracklets_have_their_frames_in_order_and_minus_one_is_not_readable(tmp_path):
    rows = {row.sample_id: row for row in rows_of(soccernet(tmp_path), read_soccernet)}
    assert list(rows) == [
        *("challenge/0", "train/0", "train/1", "train/2", "train/3", "train/10", "train/11"),
    ]
    assert rows["train/0"].files == tuple(f"train/images/0/0_{frame}.jpg" for frame in (1, 2, 10))
    assert (rows["train/0"].text, rows["train/1"].text, rows["challenge/0"].text) == ("10", "", None)
    place = "train/train_gt.json tracklet"
    assert {sample_id: row.reason for sample_id, row in rows.items() if row.reason} == {
        "train/3": f"{place} 3: It is not in the ground truth.",
        "train/10": f"{place} 10: Its number is 100; numbers are -1 to 99.",
        "train/11": f"{place} 11: There are no frames in train/images/11.",
    }


def test_a_tracklet_keeps_its_good_frames_and_the_bad_ones_are_set_aside(tmp_path):
    rows = {row.sample_id: row for row in rows_of(soccernet(tmp_path), read_soccernet)}
    kept, aside = loaded(tmp_path, rows["train/2"])
    assert (kept["frames"], kept["text"], kept["reason"]) == ([picture(21)], "7", None)
    assert aside["frames"] == [b"torn"]
    assert aside["reason"].startswith("train/images/2/2_2.jpg is not a readable")


def test_another_layout_is_not_taken_for_soccernet(tmp_path):
    with pytest.raises(DatasetError, match="SPLIT/images/TRACKLET"):
        rows_of(tree(tmp_path, {"labels.tsv": "file\ttext\n"}), read_soccernet)
    tree(tmp_path, {"train/images/0/0_1.jpg": picture(1), "train/train_gt.json": "["})
    with pytest.raises(DatasetError, match=r"train/train_gt\.json is not JSON"):
        rows_of(tmp_path, read_soccernet)
