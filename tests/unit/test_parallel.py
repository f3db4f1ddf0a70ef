"""Training shared by processes over gloo, without Ray: it ends where one worker with the same batches ends."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.images import Frame, ImageProcessor
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec
from glyphrun.training.checkpoint import read_progress
from glyphrun.training.fit import Report, TrainSettings, fit
from glyphrun.training.parallel import Workers
from killed import die_after, in_processes

CPU = torch.device("cpu")
CODEC = Codec(DIGITS, 2)
PROCESSOR = ImageProcessor(height=16, width=24)
SETTINGS = TrainSettings(
    steps=12, batch_size=8, frames_per_item=3, augment=None, evaluate_every=2, checkpoint_every=5, warmup=2, seed=5
)
RANDOM = SETTINGS.model_copy(update={"augment": TrainSettings().augment})


def tracklets() -> FrameArrays:
    """Noise with a label of 0 to 2 digits and one to three frames each, so that shares differ in tokens and frames."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 24)
    base = np.repeat(rng.integers(0, 256, (24, 3, 16, 24)), counts, axis=0)
    frames = (base + rng.integers(-20, 20, base.shape)).clip(0, 255).astype(np.uint8)
    return FrameArrays.of_frames(
        [Frame(frame, (16, 24)) for frame in frames],
        np.concatenate([[0], counts.cumsum()]),
        tuple("".join(rng.choice(list(DIGITS), int(rng.integers(0, 3)))) for _ in counts),
        tuple(f"s{number}" for number in range(24)),
    )


def recognizer(name: str, stem: str = "patch", **changes: object) -> Recognizer:
    torch.manual_seed(1)
    encoder = {"image": (16, 24), "width": 16, "depth": 1, "heads": 2, "stem": stem}
    return build(recognizer_settings(name, {"encoder": encoder, "decoder_heads": 2, **changes}), CODEC)


def train(
    folder: Path,
    settings: TrainSettings,
    workers: Workers | None = None,
    name: str = "parseq-nano",
    stem: str = "patch",
    idle: bool = False,
    **changes: object,
) -> list[Report]:
    arrays = tracklets()

    def score(trained: Recognizer) -> Scores:
        (folder.parent / f"{folder.name}-evaluated-by").open("a").write(f"{os.getpid()}\n")
        return evaluate(Engine(trained, CODEC, PROCESSOR, device=CPU, precision="float32"), arrays)

    model = recognizer(name, stem, **changes)
    if idle:
        model.register_parameter("idle", torch.nn.Parameter(torch.ones(3, 3)))
    options = {} if workers is None else {"workers": workers}
    training = fit(model, CODEC, PROCESSOR, arrays, score, settings, folder, device=CPU, precision="float32", **options)
    return list(training)


def work(rank: int, world: int, meeting: Path, updates: int | None, folder: Path, arguments: dict) -> None:
    torch.set_num_threads(1)
    die_after(updates)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    reports = train(folder, workers=Workers(rank, world), **arguments)
    said = [{**asdict(report), "seconds": 0} for report in reports]
    (folder.parent / f"{folder.name}-reports-{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()


def together(folder: Path, world: int = 2, updates: int | None = None, **arguments: object) -> list[int | None]:
    """Exit codes of workers that trained together."""
    meeting = folder.parent / f"{folder.name}-meeting-{len(list(folder.parent.glob('*meeting*')))}"
    return in_processes(work, [(rank, world, meeting, updates, folder, arguments) for rank in range(world)])


@pytest.mark.parametrize(
    ("name", "fusion", "world", "accumulate"),
    [
        ("parseq-nano", "attention", 2, 1),
        ("parseq-nano", "none", 3, 2),
        ("query-digits-nano", "concatenate", 2, 2),
    ],
)
def test_workers_end_with_the_weights_and_the_curve_of_one_with_the_same_batches(
    tmp_path, name, fusion, world, accumulate
):
    """Although shares of 8 items over 3 workers differ in items, and all shares in frames and tokens."""
    settings = SETTINGS.model_copy(update={"accumulate": accumulate})
    alone = train(tmp_path / "alone", settings, name=name, fusion=fusion, dropout=0.0)
    assert together(tmp_path / "shared", world, settings=settings, name=name, fusion=fusion, dropout=0.0) == [0] * world
    shared = read_progress(tmp_path / "shared")["reports"]
    assert [report["step"] for report in shared] == [2, 4, 6, 8, 10, 12]
    losses = [report.train_loss for report in alone]
    assert losses[-1] < 0.9 * losses[0]
    assert [report["train_loss"] for report in shared] == pytest.approx(losses, abs=1e-5)
    weights, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("shared", "alone"))
    assert weights.keys() == expected.keys()
    for key in expected:
        # What shifts all scores of a softmax has no gradient but rounding, which AdamW takes as seriously as any.
        if key.endswith(("in_proj_bias", "qkv.bias")):
            weights[key][16:32] = expected[key][16:32]  # of the keys
        if key == "fusion.legibility.bias":
            continue
        torch.testing.assert_close(weights[key], expected[key], atol=1e-4, rtol=1e-4)


def test_every_worker_yields_the_reports_of_the_first_which_alone_evaluates(tmp_path):
    assert together(tmp_path / "c", settings=RANDOM, fusion="attention") == [0, 0]
    first, second = (json.loads((tmp_path / f"c-reports-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first) == 6
    evaluated_by = (tmp_path / "c-evaluated-by").read_text().split()
    assert len(evaluated_by) == 6
    assert len(set(evaluated_by)) == 1


@pytest.mark.parametrize("stem", ["patch", "convolution"])
def test_workers_that_were_killed_and_continued_end_with_the_weights_of_those_left_alone(tmp_path, stem):
    """With dropout, augmentation and, in the convolutional stem, batch norm."""
    arguments = {"settings": RANDOM, "stem": stem, "dropout": 0.2, "fusion": "attention"}
    assert together(tmp_path / "alone", **arguments) == [0, 0]
    for updates in (3, 6):
        assert all(code for code in together(tmp_path / "killed", updates=updates, **arguments))
    assert together(tmp_path / "killed", **arguments) == [0, 0]
    expected, continued = (load_file(tmp_path / name / "weights.safetensors") for name in ("alone", "killed"))
    assert all(torch.equal(continued[key], expected[key]) for key in expected)


def test_weights_that_nothing_uses_do_not_stop_the_exchange_and_stay_as_they_were(tmp_path):
    """As a hub model's pooler; even weight decay passes them by, as it does where one worker trains."""
    assert together(tmp_path / "c", settings=SETTINGS.model_copy(update={"accumulate": 2}), idle=True) == [0, 0]
    weights = load_file(tmp_path / "c" / "weights.safetensors")
    assert torch.equal(weights["idle"], torch.ones(3, 3))


def test_every_item_of_a_batch_has_one_worker():
    for items in (2, 8, 9):
        taken = [list(range(items))[Workers(rank, 3).share(items)] for rank in range(3)]
        assert sorted(item for share in taken for item in share) == list(range(items))
        assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_workers_draw_different_numbers_from_one_seed_and_the_first_draws_those_of_one_alone():
    seeds = [Workers(rank, 4).seed(7, step) for rank in range(4) for step in range(50)]
    assert len(set(seeds)) == 200
    assert seeds[:50] == [Workers().seed(7, step) for step in range(50)]


def test_a_batch_with_fewer_items_than_workers_is_refused(tmp_path):
    settings = SETTINGS.model_copy(update={"batch_size": 2})
    with pytest.raises(ValueError, match="a batch of 2 items cannot be shared by 3 workers: raise batch_size"):
        train(tmp_path / "c", settings, Workers(0, 3))
