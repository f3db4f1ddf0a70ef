"""Which tensors of a model are stored, and hashes by which frozen ones are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def stored_tensors(model: nn.Module, *, frozen: bool = True) -> dict[str, Tensor]:
    """The state dict with each tensor once, under its first name; without ``frozen``, what training can change alone.

    A decoder whose output layer is its embedding has one tensor under two names, which safetensors does not write.
    """
    left_out = set() if frozen else {name for name, value in model.named_parameters() if not value.requires_grad}
    second = _second_names(model)
    return {
        name: value.detach().contiguous()
        for name, value in model.state_dict().items()
        if name not in second and name not in left_out
    }


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], *, frozen: bool = True) -> None:
    """Put in place what ``stored_tensors`` gave. Raises RuntimeError naming what is missing, unknown or of another shape."""
    state = model.state_dict()
    shared = {name: tensors[first] for name, first in _second_names(model).items() if first in tensors}
    expected = stored_tensors(model, frozen=frozen)
    kept = {} if frozen else {name: value for name, value in state.items() if name not in {*expected, *shared}}
    model.load_state_dict({**kept, **tensors, **shared})


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The sha256 of each tensor's type, shape and bytes, wherever it lies."""
    return {name: _digest(value) for name, value in tensors.items()}


def difference(expected: dict[str, str], found: dict[str, str]) -> str:
    """Which expected tensors are missing or not the same, in words; "" if all are there."""
    wrong = [name for name, digest in expected.items() if found.get(name) != digest]
    if not wrong:
        return ""
    what = "differs" if wrong[0] in found else "is missing"
    return f"{wrong[0]} {what}, {len(wrong)} of {len(expected)} in all"


def _second_names(model: nn.Module) -> dict[str, str]:
    """Further names of tensors that a state dict holds more than once, and the first name of each."""
    first: dict[int, str] = {}
    second: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(value), name) != name:
            second[name] = first[id(value)]
    return second


def _digest(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
