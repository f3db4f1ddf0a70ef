from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glyphrun.data.sample import DatasetError, Sample
from glyphrun.data.shards import write_samples
from glyphrun.data.show import contact_sheet
from glyphrun.images import encode_image

ABOUT = {"name": "n", "licence": "l", "description": "d"}


def test_a_sheet_is_a_png_that_the_seed_decides(small_dataset, tmp_path):
    first = contact_sheet(small_dataset, tmp_path / "deep" / "a.png", "test", count=6, seed=1).read_bytes()
    again = contact_sheet(small_dataset, tmp_path / "b.png", "test", count=6, seed=1).read_bytes()
    other = contact_sheet(small_dataset, tmp_path / "c.png", "test", count=6, seed=2).read_bytes()
    assert first == again
    assert first != other
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == 1480
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "c.png", "deep"]


def test_small_frames_are_enlarged_pixel_by_pixel(tmp_path):
    checks = (np.indices((8, 8)).sum(axis=0) % 2).astype(bool)
    frame = np.where(checks[..., None], [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    write_samples([Sample("a", (encode_image(frame),), "1", "train")], tmp_path / "s", **ABOUT)
    with Image.open(contact_sheet(tmp_path / "s", tmp_path / "sheet.png")) as sheet:
        pixels = np.asarray(sheet)
    red, blue = (pixels == [255, 0, 0]).all(axis=2).sum(), (pixels == [0, 0, 255]).all(axis=2).sum()
    # 88 × 88 with two pure colours: a smooth enlargement would mix them.
    assert red + blue == 88 * 88


def test_a_very_wide_line_and_a_long_text_stay_within_the_sheet(tmp_path):
    frame = encode_image(np.zeros((20, 3000, 3), np.uint8))
    write_samples([Sample("a", (frame,), "word " * 200, "train")], tmp_path / "s", **ABOUT)
    with Image.open(contact_sheet(tmp_path / "s", tmp_path / "sheet.png")) as sheet:
        black = (np.asarray(sheet) == 0).all(axis=2)
    assert black.any()
    assert not black[:, -24:].any()


def test_an_unknown_split_and_an_empty_data_set_are_refused(small_dataset, tmp_path):
    with pytest.raises(DatasetError, match="no split 'dev'"):
        contact_sheet(small_dataset, tmp_path / "a.png", "dev")
    write_samples([], tmp_path / "empty", **ABOUT)
    with pytest.raises(DatasetError, match="no samples to show"):
        contact_sheet(tmp_path / "empty", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
