"""Checkpoints without pickle: a folder with tensors as safetensors and everything else as JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glyphrun.models.state import difference, digests, load_tensors, stored_tensors


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, with its folder and what to do."""


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Replace ``folder`` by a checkpoint of this moment.

    The old one is moved aside only when the new one is complete, and ``load_checkpoint`` finds it there, so a process
    killed at any moment leaves one that can be read. ``progress`` is JSON: step, scaler state and running sums. Random
    numbers, learning rate and data order are functions of seed and step, so the step stands for them. Of frozen weights
    (LoRA, or an encoder that is kept) the hashes are stored alone: they are where the training started from.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(stored_tensors(model, frozen=False), aside / "weights.safetensors")
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                scalars[f"{number}.{name}"] = value
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, aside / "optimizer.safetensors")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    state_json = {"progress": progress, "scalars": scalars, "groups": groups, "frozen": _frozen_digests(model)}
    (aside / "state.json").write_text(json.dumps(state_json))
    for file in aside.iterdir():
        _flush(file)
    _replace(folder, aside)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Put a copy of a checkpoint in another's place, as ``save_checkpoint`` does. Raises CheckpointError if there is none."""
    found = find_checkpoint(source)
    if found is None:
        raise CheckpointError(f"{source} holds no complete checkpoint")
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(found, aside)
    _replace(target, aside)


def find_checkpoint(folder: Path) -> Path | None:
    """Where the newest complete checkpoint lies: the folder, or what it was about to replace; None if there is none."""
    return next((path for path in (folder, _previous(folder)) if (path / "state.json").exists()), None)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The ``progress`` of the newest complete checkpoint without its tensors; None if there is none."""
    found = find_checkpoint(folder)
    if found is None:
        return None
    progress: dict[str, Any] = json.loads((found / "state.json").read_text(encoding="utf-8"))["progress"]
    return progress


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Put a checkpoint's weights (and optimizer state) in place and return its ``progress``.

    Raises CheckpointError if there is none, it belongs to another model, or other frozen weights than this model's were
    trained with it.
    """
    found = find_checkpoint(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no complete checkpoint")
    device = next(model.parameters()).device
    try:
        stored = json.loads((found / "state.json").read_text(encoding="utf-8"))
        frozen = stored["frozen"]
        wrong = difference(frozen, _frozen_digests(model)) if frozen else ""
        if wrong:
            raise CheckpointError(
                f"{found} holds what was trained on top of frozen weights, and those of this recognizer are others: "
                f"{wrong}; start from the weights that the training started from, or give another folder"
            )
        load_tensors(model, load_file(found / "weights.safetensors", device=str(device)), frozen=not frozen)
        if optimizer is not None:
            entries: dict[int, dict[str, Any]] = {}
            tensors = load_file(found / "optimizer.safetensors", device=str(device))
            for key, value in [*tensors.items(), *stored["scalars"].items()]:
                number, name = key.split(".", 1)
                entries.setdefault(int(number), {})[name] = value
            fresh = optimizer.state_dict()["param_groups"]
            groups = [{**old, "params": new["params"]} for old, new in zip(stored["groups"], fresh, strict=True)]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except CheckpointError:
        raise
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{found} does not fit this recognizer or is damaged: {error}") from error
    progress: dict[str, Any] = stored["progress"]
    return progress


def _frozen_digests(model: nn.Module) -> dict[str, str]:
    return digests({name: value for name, value in model.named_parameters() if not value.requires_grad})


def _replace(folder: Path, aside: Path) -> None:
    previous = _previous(folder)
    # Without the folder, an earlier process was killed between the two moves, and the previous one is all there is.
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)
    os.replace(aside, folder)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
