"""Encodings of a data set that many processes read: in Ray's object store, or in files that they map into memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphrun.encoded import Encoded
from glyphrun.models.recognizer import Memory

NOTHING = torch.empty(0)  # stands where a stored tensor is
Batches = Sequence[tuple[list[int], Encoded]]


@dataclass(frozen=True)
class Stored:
    """A tensor as an array, or as the file that holds one; half marks bfloat16, which numpy does not have."""

    array: np.ndarray | None
    file: Path | None
    half: bool

    def tensor(self) -> Tensor:
        """The tensor, over the same memory: nobody writes into it."""
        array = np.load(self.file, mmap_mode="r") if self.file is not None else self.array
        assert array is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of memory that must not be written: nobody does
            tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if self.half else tensor


@dataclass(frozen=True)
class StoredBatch:
    """An encoded batch whose memory's tensors are stored."""

    numbers: list[int]
    encoded: Encoded
    tensors: dict[str, Stored]

    def load(self, device: torch.device) -> tuple[list[int], Encoded]:
        """The batch as an engine on that device decodes it."""
        tensors = {name: stored.tensor().to(device) for name, stored in self.tensors.items()}
        memory = replace(self.encoded.memory, **tensors)
        return self.numbers, replace(self.encoded, memory=memory)


@dataclass(frozen=True)
class Encoding:
    """A split as one reader encoded it, how many seconds that took, and how many frames it has."""

    batches: list[StoredBatch]
    seconds: float
    frames: int


def store(batches: Batches, folder: Path | None) -> list[StoredBatch]:
    """Batches for other processes: as arrays, which the object store shares without a copy, or as files in a folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    stored = []
    for place, (numbers, encoded) in enumerate(batches):
        tensors: dict[str, Stored] = {}
        known: dict[tuple[int, torch.Size], Stored] = {}  # frames read alone are their own fused features
        for name, tensor in _tensors(encoded.memory).items():
            same = (tensor.data_ptr(), tensor.shape)
            if same not in known:
                known[same] = _stored(tensor, folder and folder / f"{place:05}-{name}.npy")
            tensors[name] = known[same]
        bare = replace(encoded, memory=replace(encoded.memory, **dict.fromkeys(tensors, NOTHING)))
        stored.append(StoredBatch(numbers, bare, tensors))
    return stored


def _stored(tensor: Tensor, file: Path | None) -> Stored:
    half = tensor.dtype == torch.bfloat16
    array = (tensor.view(torch.int16) if half else tensor).cpu().contiguous().numpy()
    if file is None:
        return Stored(array, None, half)
    np.save(file, array)
    return Stored(None, file, half)


def size_in_bytes(batches: Batches) -> int:
    """What the tensors of encoded batches take, one under two names counted once."""
    tensors = (tensor for _, encoded in batches for tensor in _tensors(encoded.memory).values())
    sizes = {(tensor.data_ptr(), tensor.shape): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(sizes.values())


def _tensors(memory: Memory) -> dict[str, Tensor]:
    values: dict[str, Any] = {field.name: getattr(memory, field.name) for field in fields(memory)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
