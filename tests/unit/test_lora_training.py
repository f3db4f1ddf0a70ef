"""Training through LoRA moves its updates alone, and goes on where it was killed."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.images import Frame, ImageProcessor
from glyphrun.models.lora import LoraSettings, apply_lora, updates
from glyphrun.text import DIGITS
from glyphrun.training.fit import TrainSettings, fit
from glyphrun.training.optim import make_optimizer
from killed import die_after, in_processes
from lora_recognizers import CODEC, LORA, recognizer


def test_a_step_of_training_moves_every_update_and_leaves_the_frozen_weights_bit_for_bit():
    model = recognizer(fusion="attention")
    apply_lora(model, LORA.model_copy(update={"targets": ("vision", "projector", "decoder"), "unfrozen": ("norms",)}))
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, 1e-2, 0.1)
    model.train()
    for _ in range(2):  # the first factor moves once the second is no longer nothing
        memory = model.encode(torch.rand(4, 2, 3, 16, 24), torch.ones(4, 2, dtype=torch.bool))
        model.loss(memory, CODEC.encode_batch(["12", "3", "45", "67"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(moved) == 2 * len(updates(model)) + 2 * 13  # scale and shift of 8 layer norms and the stem's 5


def tracklets() -> FrameArrays:
    """Sixteen items of noise with one to three frames and a label each."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 16)
    return FrameArrays.of_frames(
        [Frame(frame, (16, 24)) for frame in rng.integers(0, 256, (counts.sum(), 3, 16, 24), np.uint8)],
        np.concatenate([[0], counts.cumsum()]),
        tuple("".join(rng.choice(list(DIGITS), 2)) for _ in counts),
        tuple(f"s{number}" for number in range(len(counts))),
    )


def train(folder: Path, updates: int | None = None) -> None:
    """LoRA training with everything that draws numbers; killed after some updates, or left alone."""
    torch.set_num_threads(1)
    die_after(updates)
    arrays, processor = tracklets(), ImageProcessor(height=16, width=24)
    cpu = torch.device("cpu")
    model = recognizer(fusion="attention", dropout=0.2)
    apply_lora(model, LoraSettings(rank=2, dropout=0.3, targets=("vision", "decoder"), unfrozen=("norms",)))
    settings = TrainSettings(
        steps=7, batch_size=4, evaluate_every=4, checkpoint_every=2, warmup=1, learning_rate=1e-2, seed=5
    )
    reports = fit(
        model,
        CODEC,
        processor,
        arrays,
        lambda trained: evaluate(Engine(trained, CODEC, processor, device=cpu, precision="float32"), arrays),
        settings,
        folder,
        device=cpu,
        precision="float32",
    )
    assert [report.step for report in reports] == [4, 7]


def test_a_training_killed_and_continued_ends_with_the_updates_of_one_left_alone(tmp_path):
    train(tmp_path / "alone")
    assert in_processes(train, [(tmp_path / "killed", 5)]) == [-signal.SIGKILL]
    train(tmp_path / "killed")
    for file in ("weights.safetensors", "optimizer.safetensors"):
        expected, continued = (load_file(tmp_path / run / file) for run in ("alone", "killed"))
        assert expected.keys() == continued.keys()
        assert all(torch.equal(continued[name], expected[name]) for name in expected)
    stored = load_file(tmp_path / "alone" / "weights.safetensors")
    assert "decoder.layers.0.self_attn.parametrizations.in_proj_weight.0.lora_B" in stored
    assert float(stored["decoder.layers.0.self_attn.parametrizations.in_proj_weight.0.lora_B"].abs().max()) > 1e-3
