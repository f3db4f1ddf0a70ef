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
from safetensors.torch import load_file
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


def partly_frozen(seed: int, frozen: tuple[str, ...] = ("0.weight",)) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(200, 50), nn.BatchNorm1d(50), nn.Linear(50, 2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    optimizer = make_optimizer(model, 1e-3, 0.1)
    model(torch.randn(4, 200)).pow(2).sum().backward()
    optimizer.step()
    return model, optimizer


def test_the_optimizer_leaves_frozen_weights_out():
    model, optimizer = partly_frozen(1)
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert given == {id(parameter) for name, parameter in model.named_parameters() if name != "0.weight"}
    torch.manual_seed(1)
    assert torch.equal(model[0].weight, nn.Linear(200, 50).weight)


def test_a_checkpoint_of_a_frozen_base_holds_what_is_trained_alone(tmp_path):
    model, optimizer = partly_frozen(1)
    save_checkpoint(tmp_path / "c", model, optimizer, {"step": 1})
    stored = load_file(tmp_path / "c" / "weights.safetensors")
    assert stored.keys() == model.state_dict().keys() - {"0.weight"}
    assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) < 0.25 * model[0].weight.nbytes
    again, its_optimizer = partly_frozen(1)
    with torch.no_grad():
        for name, value in again.state_dict().items():
            if name != "0.weight":
                value.fill_(7)
    assert load_checkpoint(tmp_path / "c", again, its_optimizer) == {"step": 1}
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_checkpoint_is_not_continued_on_another_base(tmp_path):
    save_checkpoint(tmp_path / "c", *partly_frozen(1), {"step": 1})
    other, optimizer = partly_frozen(2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"those of this recognizer are others: 0\.weight differs, 1 of 1 in all"):
        load_checkpoint(tmp_path / "c", other, optimizer)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())
    changed, optimizer = partly_frozen(1)
    with torch.no_grad():
        changed[0].weight[49, 199] += 1e-6
    with pytest.raises(CheckpointError, match=r"0\.weight differs"):
        load_checkpoint(tmp_path / "c", changed, optimizer)


def test_a_checkpoint_of_a_frozen_base_is_not_taken_for_a_whole_one(tmp_path):
    save_checkpoint(tmp_path / "c", *partly_frozen(1), {"step": 1})
    with pytest.raises(CheckpointError, match=r"0\.weight is missing"):
        load_checkpoint(tmp_path / "c", *partly_frozen(1, frozen=()))
    save_checkpoint(tmp_path / "whole", *partly_frozen(2, frozen=()), {"step": 1})
    with_frozen, _ = partly_frozen(1)
    load_checkpoint(tmp_path / "whole", with_frozen)
    assert torch.equal(with_frozen[0].weight, partly_frozen(2, frozen=())[0][0].weight)


@pytest.mark.parametrize("frozen", [(), ("0.weight",), ("1.weight",)])
def test_a_tensor_with_two_names_is_stored_once_and_stays_one(tmp_path, frozen):
    def tied(value: float) -> nn.Module:
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(3, 5, bias=False))
        model[2].weight = model[0].weight
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, 1.0 if name in frozen else value)
            parameter.requires_grad_(name not in frozen)
        return model

    model = tied(3.0)
    save_checkpoint(tmp_path / "c", model, make_optimizer(model, 1e-3, 0.1), {})
    assert "2.weight" not in load_file(tmp_path / "c" / "weights.safetensors")
    other = tied(0.0)
    load_checkpoint(tmp_path / "c", other)
    assert other[2].weight is other[0].weight
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
