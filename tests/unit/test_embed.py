from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from glyphrun.data.sample import Sample
from glyphrun.data.shards import write_samples
from glyphrun.engine import Engine
from glyphrun.evaluation.embed import embed_dataset
from glyphrun.images import ImageError, ImageProcessor, encode_image
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    settings = recognizer_settings("parseq-nano", {"fusion": "concatenate"})
    recognizer = build(settings, Codec(DIGITS, 2))
    return Engine(recognizer, Codec(DIGITS, 2), ImageProcessor(height=40, width=40), precision="float32")


def dataset(folder: Path, samples: int, bad: int | None = None) -> Path:
    rng = np.random.default_rng(0)
    write_samples(
        [
            Sample(
                sample_id=f"s{number}",
                frames=tuple(
                    b"no image" if number == bad else encode_image(rng.integers(0, 256, (20, 16, 3), np.uint8))
                    for _ in range(1 + number % 3)
                ),
                text=None if number == 1 else str(number % 100),
                split="train" if number % 2 else "val",
            )
            for number in range(samples)
        ],
        folder,
        name="noise",
        licence="none",
        description="noise",
        charset=DIGITS,
    )
    return folder


def test_every_sample_has_a_pooled_feature_and_one_for_each_patch_of_each_frame(engine, tmp_path):
    out = tmp_path / "features.parquet"
    told: list[int] = []
    assert embed_dataset(engine, dataset(tmp_path / "data", 70), out, told.append) == sum(told) == 70
    rows = {row["sample_id"]: row for row in pq.read_table(out).to_pylist()}
    assert len(rows) == 70
    assert rows["s1"]["text"] is None and rows["s69"]["split"] == "train"
    for number in (0, 1, 2, 69):
        row = rows[f"s{number}"]
        patches = np.array(row["patches"])
        assert patches.shape == (1 + number % 3, 25, 96)
        assert np.allclose(row["pooled"], patches.mean((0, 1)), atol=1e-5)


def test_features_do_not_depend_on_what_else_is_read(engine, tmp_path):
    rng = np.random.default_rng(1)
    items = [[encode_image(rng.integers(0, 256, (30, 30, 3), np.uint8))] * count for count in (1, 3, 2)]
    prepared = [engine.prepare(frames, name="x") for frames in items]
    together, alone = engine.embed(prepared), [engine.embed([one])[0] for one in prepared]
    for one, other in zip(together, alone, strict=True):
        assert len(one.frames) == len(other.frames)
        assert np.allclose(one.pooled, other.pooled, atol=1e-5)


def test_a_sample_that_cannot_be_decoded_leaves_no_file(engine, tmp_path):
    out = tmp_path / "features.parquet"
    with pytest.raises(ImageError, match="s67"):
        embed_dataset(engine, dataset(tmp_path / "data", 70, bad=67), out)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_that_exists_is_kept(engine, tmp_path):
    out = tmp_path / "features.parquet"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        embed_dataset(engine, dataset(tmp_path / "data", 3), out)
    assert out.read_text() == "mine"
