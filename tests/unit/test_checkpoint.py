from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from glyphrun.training.optim import make_optimizer

TOUCHES_FILES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def model_at(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model with the same number in every weight, after one step of its optimizer."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(model, 1e-3, 0.1)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model, optimizer


def save_and_die(folder: Path, step: int, moment: int) -> None:
    """Save a checkpoint, and be killed just before the file system is touched for the given time."""
    model, optimizer = model_at(step)
    touched = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in TOUCHES_FILES and folder.name in str(arguments[0]):
            if touched == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            touched += 1

    sys.addaudithook(watch)
    save_checkpoint(folder, model, optimizer, {"step": step})


def test_a_checkpoint_gives_back_weights_buffers_optimizer_and_progress(tmp_path):
    model, optimizer = model_at(0.5)
    progress = {"step": 7, "seconds": 1.25, "scaler": {}, "reports": [{"step": 5}]}
    save_checkpoint(tmp_path / "c", model, optimizer, progress)
    other, other_optimizer = model_at(0.0)
    other[1].running_mean.fill_(9)
    assert load_checkpoint(tmp_path / "c", other, other_optimizer) == progress == read_progress(tmp_path / "c")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    for model_to_step, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        its_optimizer.zero_grad()
        model_to_step(torch.arange(12.0).view(4, 3)).pow(2).sum().backward()
        its_optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_checkpoint_holds_tensors_and_json_and_nothing_that_is_unpickled(tmp_path):
    save_checkpoint(tmp_path / "c", *model_at(0.5), {"step": 1})
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "c",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    json.loads((tmp_path / "c" / "state.json").read_text())


@pytest.mark.parametrize("first_kill", [None, "between the moves"])
def test_a_process_killed_at_any_moment_of_a_save_leaves_a_checkpoint_that_loads(tmp_path, first_kill):
    """The second save is killed before its first touch of a file, its second, … until it is through.

    The other case starts where an earlier process was killed already, with the old checkpoint moved aside.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "torch._dynamo", "glyphrun.models.zoo", "glyphrun.training.fit"])
    found_steps: list[int] = []
    for moment in range(100):
        folder = tmp_path / str(moment) / "checkpoint"
        save_checkpoint(folder, *model_at(1), {"step": 1})
        if first_kill:
            shutil.copytree(folder, folder.with_name(".checkpoint.part"))
            folder.rename(folder.with_name(".checkpoint.previous"))
        process = processes.Process(target=save_and_die, args=(folder, 2, moment))
        process.start()
        process.join()
        model, optimizer = model_at(0)
        step = load_checkpoint(folder, model, optimizer)["step"]
        assert {float(parameter.detach().flatten()[0]) for parameter in model.parameters()} == {step}
        found_steps.append(step)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0
    assert len(found_steps) > 8
    assert found_steps == sorted(found_steps)  # the old one up to some moment, the new one from then on
    assert set(found_steps) == {1, 2}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_half_written_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "weights.safetensors").write_bytes(b"")
    assert find_checkpoint(tmp_path / "c") is None
    assert read_progress(tmp_path / "c") is None
    with pytest.raises(CheckpointError, match="c holds no complete checkpoint"):
        load_checkpoint(tmp_path / "c", model_at(0)[0])


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path, file):
    save_checkpoint(tmp_path / "c", *model_at(0.5), {"step": 1})
    path = tmp_path / "c" / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"c does not fit this recognizer or is damaged"):
        load_checkpoint(tmp_path / "c", *model_at(0))


def test_a_checkpoint_of_another_recognizer_is_refused(tmp_path):
    encoder = EncoderSettings(image=(16, 16), patch=(8, 8), width=16, depth=1, heads=2)
    narrow = PARSeq(PARSeqSettings(encoder=encoder, decoder_heads=2), 10, 2)
    wide = PARSeq(PARSeqSettings(encoder=encoder, decoder_heads=2), 26, 2)
    save_checkpoint(tmp_path / "c", narrow, make_optimizer(narrow, 1e-3, 0.1), {"step": 1})
    with pytest.raises(CheckpointError, match=r"(?s)does not fit this recognizer.*head\.weight"):
        load_checkpoint(tmp_path / "c", wide)
