"""The pipelines on a real Ray of two processes."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glyphrun.data.check import check_dataset
from glyphrun.data.digits import UNSEEN_NUMBERS, digit_pools, mnist_digits
from glyphrun.data.importers import import_dataset
from glyphrun.data.sample import REJECTED_SCHEMA, DatasetError, dataset_hash, iterate_samples, read_card
from glyphrun.data.simulate import SimulatorSettings, plan_tracklets, render_plan
from glyphrun.data.stream import read_dataset, rows_dataset, simulate_dataset, write_dataset
from glyphrun.images import encode_image

COUNTS = {"train": 150, "val": 30, "test": 30, "unseen": 40}

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def simulated(local_ray, tmp_path_factory):
    calls: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("data") / "simulated"
    simulate_dataset(folder, SimulatorSettings(), COUNTS, seed=5, progress=lambda *call: calls.append(call))
    assert calls[-1] == (250, 250)
    return folder


def picture(shade: int) -> bytes:
    return encode_image(np.full((4, 6, 3), shade, np.uint8))


def test_a_simulated_data_set_is_sound_and_has_what_was_asked_for(simulated):
    assert check_dataset(simulated) == []
    card = read_card(simulated)
    assert (card.counts, card.rejected, card.charset) == (COUNTS, 0, "0123456789")
    assert {sample.text for sample in iterate_samples(simulated, "unseen")} == set(UNSEEN_NUMBERS)


def test_what_the_processes_wrote_is_what_one_process_renders_in_the_plans_order(simulated):
    images, labels = mnist_digits()
    settings = SimulatorSettings()
    plans = plan_tracklets(digit_pools(labels, seed=5), COUNTS, settings, seed=5)
    expected = [render_plan(plan, images[list(plan.digit_images)], settings) for plan in plans]
    assert list(iterate_samples(simulated)) == expected


def test_the_same_seed_gives_the_same_hash_and_another_seed_another(simulated, tmp_path):
    for seed in (5, 6):
        simulate_dataset(tmp_path / str(seed), SimulatorSettings(), COUNTS, seed=seed)
    assert dataset_hash(tmp_path / "5") == dataset_hash(simulated)
    assert dataset_hash(tmp_path / "6") != dataset_hash(simulated)


def test_a_data_set_read_by_ray_has_all_rows(simulated):
    ds = read_dataset(simulated)
    assert ds.count() == 250
    ids = {row["sample_id"] for row in ds.select_columns(["sample_id"]).take_all()}
    assert ids == {sample.sample_id for sample in iterate_samples(simulated)}


def test_rows_keep_their_order_and_rejected_ones_are_set_aside(tmp_path):
    rows = [
        {
            "sample_id": f"{number:04d}", "frames": [picture(number % 256)], "text": "1", "split": "train",
            "group": None, "source": "here", "meta": "{}", "reason": "It is odd." if number % 100 == 1 else None,
        }
        for number in range(700)
    ]  # fmt: skip
    ds = rows_dataset(pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))
    card = write_dataset(ds, tmp_path / "set", name="n", licence="l", description="d")
    assert (card.counts, card.rejected) == ({"train": 693}, 7)
    ids = [sample.sample_id for sample in iterate_samples(tmp_path / "set")]
    assert ids == [row["sample_id"] for row in rows if row["reason"] is None]
    rejected = pq.read_table(tmp_path / "set" / "rejected.parquet")
    assert rejected.schema.names == REJECTED_SCHEMA.names
    assert rejected["sample_id"].to_pylist() == [f"{number:04d}" for number in range(1, 700, 100)]


def test_a_pipeline_that_fails_leaves_no_folder(tmp_path):
    def fail(table: pa.Table) -> pa.Table:
        raise RuntimeError("the disk is gone")

    rows = rows_dataset(pa.Table.from_pylist([{"sample_id": "a"}]))
    with pytest.raises(Exception, match="the disk is gone"):
        write_dataset(
            rows.map_batches(fail, batch_size=None, batch_format="pyarrow"),
            tmp_path / "set",
            name="n",
            licence="l",
            description="d",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_the_simulator_does_not_know_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no split 'dev'; its splits are train, val, test, unseen"):
        simulate_dataset(tmp_path / "set", SimulatorSettings(), {"dev": 3}, seed=0)


def test_an_import_loses_no_row(tmp_path):
    labels = "file\ttext\tsplit\twriter\na.png\té\ttrain\tw1\ntorn.png\tb\ttrain\tw1\ngone.png\tc\tval\tw2\n"
    labels += "d.png\t\tval\tw2\ne.png\t" + "x" * 300 + "\tval\tw2\nf.png\tb\tval\tw2\n"
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr("labels.tsv", labels)
        archive.writestr("torn.png", picture(1)[:50])
        for shade, name in enumerate("adef"):
            archive.writestr(f"{name}.png", picture(shade))
    card = import_dataset("table", tmp_path / "pack.zip", tmp_path / "out")
    assert (card.name, card.counts, card.rejected, card.charset) == ("pack", {"train": 1, "val": 1}, 4, "bé")
    assert check_dataset(tmp_path / "out") == []
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [(row["source"], row["reason"]) for row in rejected] == [
        ("labels.tsv line 3", "torn.png is damaged or cut short; send the whole file."),
        ("labels.tsv line 4", "gone.png is missing from pack.zip."),
        ("labels.tsv line 5", "labels.tsv line 5: The text is empty."),
        ("labels.tsv line 6", "The text has 300 characters; the limit is 256."),
    ]


def test_soccernet_arrives_as_tracklets(tmp_path):
    source = tmp_path / "soccernet"
    for name, shade in [("0/0_1", 1), ("0/0_2", 2), ("1/1_1", 3)]:
        path = source / "test" / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(shade))
    (source / "test" / "test_gt.json").write_text(json.dumps({"0": 23, "1": -1}))
    import_dataset("soccernet", source, tmp_path / "out", charset="0123456789", max_length=2)
    found = {sample.sample_id: sample for sample in iterate_samples(tmp_path / "out", "test")}
    assert found["test/0"].frames == (picture(1), picture(2))
    assert (found["test/0"].text, found["test/1"].text) == ("23", "")


@pytest.mark.parametrize(
    ("pack", "counts", "characters"),
    [
        ("cheque_pairs", {"train": 2555, "val": 286}, 10),
        ("cheque_amounts", {"train": 892, "val": 100}, 10),
        ("jersey_crops", {"train": 7463, "val": 305}, 10),
        ("handwriting_fr", {"train": 3973, "val": 528}, 135),
    ],
)
def test_every_row_of_the_real_packs_arrives_byte_for_byte(shared, tmp_path, pack, counts, characters):
    source = shared / "data" / f"{pack}.zip"
    card = import_dataset("table", source, tmp_path / "out")
    assert (card.counts, card.rejected, len(card.charset)) == (counts, 0, characters)
    with zipfile.ZipFile(source) as archive:
        lines = archive.read("labels.tsv").decode("utf-8").split("\n")[1:-1]
        samples = list(iterate_samples(tmp_path / "out"))
        assert [(s.sample_id, s.text, s.split) for s in samples] == [tuple(line.split("\t")[:3]) for line in lines]
        assert all(sample.frames == (archive.read(sample.sample_id),) for sample in samples)
