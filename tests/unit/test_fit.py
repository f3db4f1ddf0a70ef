from __future__ import annotations

import json
import signal
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.images import Frame, ImageProcessor
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec
from glyphrun.training.checkpoint import CheckpointError, read_progress
from glyphrun.training.fit import Report, TrainingDiverged, TrainSettings, fit
from glyphrun.training.optim import learning_rate_at
from killed import die_after, in_processes

CPU = torch.device("cpu")
CODEC = Codec(DIGITS, 2)
PROCESSOR = ImageProcessor(height=16, width=24)
SMALL = {"image": (16, 24), "width": 16, "depth": 1, "heads": 2}


def tracklets(items: int = 24, digits: int | None = None) -> FrameArrays:
    """Noise with a label each, one to three frames an item; the labels have that many digits, else 0 to 2."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, items)
    base = rng.integers(0, 256, (items, 3, 16, 24))
    frames = np.repeat(base, counts, axis=0) + rng.integers(-20, 20, (counts.sum(), 3, 16, 24))
    lengths = [int(rng.integers(0, 3)) if digits is None else digits for _ in range(items)]
    return FrameArrays.of_frames(
        [Frame(frame, (16, 24)) for frame in frames.clip(0, 255).astype(np.uint8)],
        np.concatenate([[0], counts.cumsum()]),
        tuple("".join(rng.choice(list(DIGITS), length)) for length in lengths),
        tuple(f"s{number}" for number in range(items)),
    )


def recognizer(name: str = "parseq-nano", **changes: object) -> Recognizer:
    torch.manual_seed(1)
    return build(recognizer_settings(name, {"encoder": SMALL, "decoder_heads": 2, **changes}), Codec(DIGITS, 2))


def scores_on(arrays: FrameArrays, trained: Recognizer) -> Scores:
    return evaluate(Engine(trained, CODEC, PROCESSOR, device=CPU, precision="float32"), arrays)


def train(model: Recognizer, folder: Path, settings: TrainSettings, arrays: FrameArrays | None = None) -> list[Report]:
    arrays = arrays or tracklets()
    return list(
        fit(
            model,
            CODEC,
            PROCESSOR,
            arrays,
            lambda trained: scores_on(arrays, trained),
            settings,
            folder,
            device=CPU,
            precision="float32",
        )
    )


LONG = TrainSettings(
    steps=14, batch_size=4, accumulate=2, evaluate_every=5, checkpoint_every=3, warmup=2, learning_rate=1e-2, seed=5
)


def train_and_die(name: str, folder: Path, updates: int | None) -> None:
    """Train with everything that draws numbers (dropout, augmentation, orders), killed after some updates."""
    torch.set_num_threads(1)
    die_after(updates)
    train(recognizer(name, dropout=0.2, fusion="attention"), folder, LONG)


def in_a_process(name: str, folder: Path, updates: int | None = None) -> int | None:
    """The exit code of a training in a process of its own."""
    return in_processes(train_and_die, [(name, folder, updates)])[0]


@pytest.mark.parametrize("name", ["parseq-nano", "query-digits-nano"])
def test_a_run_killed_at_any_step_and_continued_ends_with_the_weights_of_one_left_alone(tmp_path, name):
    assert in_a_process(name, tmp_path / "alone") == 0
    expected = load_file(tmp_path / "alone" / "weights.safetensors")
    moments = load_file(tmp_path / "alone" / "optimizer.safetensors")
    reports = read_progress(tmp_path / "alone")["reports"]
    assert [report["step"] for report in reports] == [5, 10, 14]
    for kills in ([1], [4], [14], [8, 3, 2]):  # updates that each process makes before it is killed
        folder = tmp_path / "-".join(map(str, kills))
        for updates in kills:
            assert in_a_process(name, folder, updates) == -signal.SIGKILL
        assert in_a_process(name, folder) == 0
        continued = load_file(folder / "weights.safetensors")
        assert continued.keys() == expected.keys()
        assert all(torch.equal(continued[key], expected[key]) for key in expected)
        again = load_file(folder / "optimizer.safetensors")
        assert all(torch.equal(again[key], moments[key]) for key in moments)
        for one, other in zip(read_progress(folder)["reports"], reports, strict=True):
            assert (one["step"], one["train_loss"]) == (other["step"], other["train_loss"])
            assert one["scores"]["exact"] == other["scores"]["exact"]


def test_a_finished_run_gives_its_reports_again_and_trains_no_further(tmp_path):
    settings = LONG.model_copy(update={"steps": 6})
    first = train(recognizer(), tmp_path / "c", settings)
    weights = (tmp_path / "c" / "weights.safetensors").read_bytes()
    again = train(recognizer(), tmp_path / "c", settings)
    assert json.dumps([asdict(report) for report in again]) == json.dumps([asdict(report) for report in first])
    assert [report.step for report in first] == [5, 6]
    assert (tmp_path / "c" / "weights.safetensors").read_bytes() == weights


def test_the_seed_decides_where_a_run_ends(tmp_path):
    ends = []
    for number, seed in enumerate((5, 5, 6)):
        train(recognizer(), tmp_path / str(number), LONG.model_copy(update={"seed": seed, "steps": 3}))
        ends.append((tmp_path / str(number) / "weights.safetensors").read_bytes())
    assert ends[0] == ends[1] != ends[2]


def test_nothing_that_is_unpickled_is_ever_written(tmp_path):
    train(recognizer(), tmp_path / "c", LONG.model_copy(update={"steps": 4}))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_a_loss_that_is_no_number_stops_the_run_with_step_rate_and_advice(tmp_path):
    model = recognizer()
    settings = LONG.model_copy(update={"learning_rate": 1e30, "warmup": 0, "checkpoint_every": 1})
    with pytest.raises(
        TrainingDiverged, match=r"the loss is (nan|inf) at step [12] with learning rate .*e\+(29|30): lower"
    ):
        train(model, tmp_path / "c", settings)


def test_a_run_whose_loss_is_no_number_keeps_its_last_good_checkpoint(tmp_path):
    model, arrays = recognizer(), tracklets()

    def spoil(trained: Recognizer) -> Scores:
        scores = scores_on(arrays, trained)
        with torch.no_grad():
            trained.head.bias.fill_(float("nan"))
        return scores

    settings = LONG.model_copy(update={"evaluate_every": 4, "checkpoint_every": 3})
    reports = fit(model, CODEC, PROCESSOR, arrays, spoil, settings, tmp_path / "c", device=CPU, precision="float32")
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 4 "):
        list(reports)


def test_a_checkpoint_of_another_recognizer_is_not_continued(tmp_path):
    train(recognizer(), tmp_path / "c", LONG.model_copy(update={"steps": 1}))
    with pytest.raises(CheckpointError, match="does not fit this recognizer"):
        train(recognizer("query-digits-nano"), tmp_path / "c", LONG)


def gradients(folder: Path, settings: TrainSettings, arrays: FrameArrays) -> list[Tensor]:
    """What the optimizer is given at the first step."""
    seen: list[Tensor] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.extend(
            parameter.grad.clone() for group in optimizer.param_groups for parameter in group["params"]
        )
    )
    try:
        # Batch norm is part of the convolutional stem, and its statistics are those of each batch.
        train(recognizer(dropout=0.0, encoder={**SMALL, "stem": "patch"}, fusion="attention"), folder, settings, arrays)
    finally:
        hook.remove()
    return seen


def test_two_batches_of_8_give_the_gradient_of_one_of_16(tmp_path):
    """Exactly so for labels of one length; the loss is a mean over tokens, and a batch counts as a batch."""
    settings = TrainSettings(
        steps=1, batch_size=16, frames_per_item=3, augment=None, clip=1e9, warmup=0, learning_rate=1e-3
    )
    arrays = tracklets(16, digits=2)
    whole = gradients(tmp_path / "16", settings, arrays)
    halves = gradients(tmp_path / "8", settings.model_copy(update={"batch_size": 8, "accumulate": 2}), arrays)
    assert len(whole) == len(halves) > 20
    assert max(float(gradient.abs().max()) for gradient in whole) > 0.01
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_gradient_is_clipped_to_the_norm_asked_for(tmp_path):
    settings = TrainSettings(steps=1, batch_size=8, augment=None, clip=0.01, warmup=0)
    clipped = gradients(tmp_path / "c", settings, tracklets(8))
    assert torch.stack([gradient.norm() for gradient in clipped]).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("name", "fusion"), [("parseq-nano", "none"), ("query-digits-nano", "attention")])
def test_a_small_set_is_learned_by_heart(tmp_path, name, fusion):
    settings = TrainSettings(
        steps=60, batch_size=8, frames_per_item=3, learning_rate=5e-3, warmup=5, augment=None, evaluate_every=20
    )
    arrays = tracklets(8)
    reports = train(recognizer(name, fusion=fusion), tmp_path / "c", settings, arrays)
    losses = [report.train_loss for report in reports]
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    assert reports[-1].scores["exact"] == 1.0
    assert [report.seconds for report in reports] == sorted(report.seconds for report in reports)


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate_at(step, 100, 1.0, 10, "cosine") for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    cycle = [learning_rate_at(step, 100, 1.0, 10, "one-cycle") for step in range(100)]
    assert cycle[0] == pytest.approx(0.04)
    assert cycle.index(max(cycle)) == 30
    assert cycle[65] == pytest.approx(0.5)


def test_snapshots_come_at_their_steps_and_leave_the_training_as_it_was(tmp_path):
    settings = TrainSettings(steps=6, batch_size=8, evaluate_every=6, checkpoint_every=6, warmup=0, snapshot_every=2)
    seen: list[tuple[int, float]] = []

    def snapshot(trained: Recognizer, step: int) -> None:
        seen.append((step, float(trained.eval().head.weight.detach().abs().sum())))

    model, plain = recognizer(), recognizer()
    arrays = tracklets()

    def score(trained: Recognizer) -> Scores:
        return scores_on(arrays, trained)

    with_snapshots = fit(
        model, CODEC, PROCESSOR, arrays, score, settings, tmp_path / "a", device=CPU, snapshot=snapshot
    )
    without = fit(plain, CODEC, PROCESSOR, arrays, score, settings, tmp_path / "b", device=CPU)
    list(with_snapshots), list(without)
    assert [step for step, _ in seen] == [2, 4, 6]
    assert len({weight for _, weight in seen}) == 3
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
