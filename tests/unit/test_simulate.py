from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from glyphrun.data.digits import UNSEEN_NUMBERS, VAL_NUMBERS, digit_pools, mnist_digits
from glyphrun.data.sample import iterate_samples
from glyphrun.data.simulate import SimulatorSettings, plan_tracklets, render_plan, simulate_tracklet
from glyphrun.images import decode_image

COUNTS = {"train": 2000, "val": 200, "test": 400, "unseen": 200}


@pytest.fixture(scope="module")
def digits():
    return mnist_digits()


@pytest.fixture(scope="module")
def plans(digits):
    return plan_tracklets(digit_pools(digits[1], seed=3), COUNTS, SimulatorSettings(), seed=3)


def test_the_digits_are_500_real_images_of_each(digits):
    images, labels = digits
    assert images.shape == (5000, 28, 28)
    assert images.dtype == np.uint8
    assert Counter(labels.tolist()) == dict.fromkeys(range(10), 500)


def test_pools_share_out_every_image_once(digits):
    pools = digit_pools(digits[1], seed=0)
    assert {split: [len(part) for part in parts] for split, parts in pools.items()} == {
        "train": [340] * 10,
        "val": [40] * 10,
        "test": [60] * 10,
        "unseen": [60] * 10,
    }
    used = np.concatenate([part for parts in pools.values() for part in parts])
    assert len(np.unique(used)) == 5000
    for parts in pools.values():
        for digit, part in enumerate(parts):
            assert set(digits[1][part].tolist()) == {digit}
    other = digit_pools(digits[1], seed=1)
    assert not np.array_equal(other["test"][0], pools["test"][0])


def test_no_digit_image_is_in_two_splits(plans):
    users: dict[int, set[str]] = {}
    for plan in plans:
        for index in plan.digit_images:
            users.setdefault(index, set()).add(plan.split)
    assert len(users) > 3000
    assert {len(splits) for splits in users.values()} == {1}


def test_every_digit_image_shows_the_digit_it_stands_for(plans, digits):
    for plan in plans:
        assert "".join(str(digits[1][index]) for index in plan.digit_images) == plan.number


def test_unseen_numbers_are_in_unseen_alone_and_all_others_in_train(plans):
    by_split = {split: {plan.number for plan in plans if plan.split == split} for split in COUNTS}
    assert by_split["unseen"] == set(UNSEEN_NUMBERS)
    assert len(UNSEEN_NUMBERS) == 20
    for split in ("train", "val", "test"):
        assert not by_split[split] & set(UNSEEN_NUMBERS)
    assert by_split["train"] == {f"{n:02d}" for n in range(100)} - set(UNSEEN_NUMBERS + VAL_NUMBERS) | set("0123456789")


def test_unseen_numbers_are_those_of_the_real_cheques(shared):
    readme = (shared / "data" / "README.md").read_text(encoding="utf-8")
    assert " ".join(UNSEEN_NUMBERS) + " for cheques" in readme


def test_shares_of_one_digit_and_unreadable_tracklets_are_exact(plans):
    train = [plan for plan in plans if plan.split == "train"]
    assert sum(len(plan.number) == 1 for plan in train) == 300
    assert sum(not plan.readable for plan in train) == 80
    assert all(plan.readable and len(plan.number) == 2 for plan in plans if plan.split == "unseen")


def test_another_count_for_one_split_leaves_the_others_as_they_were(plans, digits):
    pools = digit_pools(digits[1], seed=3)
    fewer = plan_tracklets(pools, {**COUNTS, "train": 10}, SimulatorSettings(), seed=3)
    assert [p for p in fewer if p.split != "train"] == [p for p in plans if p.split != "train"]


def test_a_plan_renders_the_same_bytes_every_time_and_others_for_another_seed(plans, digits):
    plan = next(plan for plan in plans if plan.readable and len(plan.number) == 2)
    glyphs = digits[0][list(plan.digit_images)]
    first, again = (render_plan(plan, glyphs, SimulatorSettings()) for _ in range(2))
    assert first == again
    assert first.text == plan.number
    assert len(first.groups) == len(set(plan.digit_images))
    other = render_plan(type(plan)(**{**plan.__dict__, "seed": plan.seed + 1}), glyphs, SimulatorSettings())
    assert other.frames != first.frames


def test_tracklets_have_three_to_eight_colour_frames_of_a_crops_size(small_dataset):
    lengths, sizes = set(), []
    for sample in iterate_samples(small_dataset):
        lengths.add(len(sample.frames))
        for frame in sample.frames:
            height, width, channels = decode_image(frame).shape
            assert channels == 3
            assert 40 <= height <= 80
            assert 25 <= width <= 62
            sizes.append(len(frame))
    assert lengths == {3, 4, 5, 6, 7, 8}
    assert np.mean(sizes) < 2000


def test_a_readable_tracklet_has_two_legible_frames_and_an_unreadable_one_none(small_dataset):
    texts = []
    for sample in iterate_samples(small_dataset):
        legible = sample.meta["legible"]
        assert len(legible) == len(sample.frames)
        assert sum(legible) >= 2 if sample.text else sum(legible) == 0
        assert sample.text in ("", sample.meta["number"])
        texts.append(sample.text)
    assert texts.count("") == 4  # 4 % of 60, of 20 and of 20


def likeness(frames: list[np.ndarray], reference: np.ndarray) -> list[float]:
    """How much of the reference's pattern is left in each frame: correlation at the best small shift."""
    import cv2

    scores = []
    for frame in frames:
        grey = cv2.cvtColor(cv2.resize(frame, reference.shape[::-1]), cv2.COLOR_RGB2GRAY).astype(np.float32)
        found = cv2.matchTemplate(grey, reference[6:-6, 6:-6].astype(np.float32), cv2.TM_CCOEFF_NORMED)
        scores.append(float(np.abs(found).max()))
    return scores


def test_the_number_is_visible_in_legible_frames_and_not_in_the_others(digits):
    import cv2

    images, labels = digits
    glyphs = images[[int(np.flatnonzero(labels == digit)[5]) for digit in (3, 8)]]
    still = SimulatorSettings(
        shift=0, scale=(1, 1), rotation=0, perspective=0, motion_blur=(0, 0), low_resolution=(1, 1), noise=(0, 0),
        distant=0, occlusion=0, unreadable_frame=0, frames=(8, 8), height=(64, 64), aspect=(0.7, 0.7),
        number_height=(0.5, 0.5),
    )  # fmt: skip
    usual = SimulatorSettings(frames=(8, 8), height=(64, 64), aspect=(0.7, 0.7), number_height=(0.5, 0.5))
    seen, hidden = [], []
    for seed in range(12):
        clean = simulate_tracklet("38", glyphs, still, np.random.default_rng(seed)).frames[0]
        reference = cv2.cvtColor(cv2.resize(clean, (44, 64)), cv2.COLOR_RGB2GRAY)
        tracklet = simulate_tracklet("38", glyphs, usual, np.random.default_rng(seed))
        for score, legible in zip(likeness(tracklet.frames, reference), tracklet.legible, strict=True):
            (seen if legible else hidden).append(score)
    assert len(hidden) >= 10
    assert np.median(seen) > 0.6
    assert np.median(hidden) < 0.45


def test_shirts_are_both_lighter_and_darker_than_their_numbers(digits):
    glyphs = digits[0][[int(np.flatnonzero(digits[1] == 0)[0])]]
    settings = SimulatorSettings(occlusion=0, unreadable_frame=0, noise=(0, 0))
    lighter = 0
    for seed in range(40):
        frame = simulate_tracklet("0", glyphs, settings, np.random.default_rng(seed)).frames[0].mean(axis=2)
        border = np.concatenate([frame[:4].ravel(), frame[-4:].ravel()]).mean()
        # The middle of a 0 is cloth: its strokes are what differs most from the border.
        strokes = frame.ravel()[np.abs(frame.ravel() - border).argsort()[-40:]].mean()
        lighter += strokes > border
    assert 8 <= lighter <= 32


def test_wrong_input_is_refused():
    settings, rng = SimulatorSettings(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="needs 2 glyphs; 1 were given"):
        simulate_tracklet("12", [np.full((28, 28), 255, np.uint8)], settings, rng)
    with pytest.raises(ValueError, match="no ink"):
        simulate_tracklet("1", [np.zeros((28, 28), np.uint8)], settings, rng)
    with pytest.raises(ValidationError, match="noize"):
        SimulatorSettings.model_validate({"noize": (0, 1)})
