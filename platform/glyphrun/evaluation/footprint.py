"""Memory that a recognizer takes to read, counted tensor by tensor: the same figure on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble


def memory_mib(reader: Engine | Ensemble, frames: Sequence[bytes]) -> float:
    """MiB of the weights and of all tensors that live at once while one item of encoded frames is read, at their most.

    Of an ensemble, the weights of all members. What kernels, Python and the libraries take beside tensors is the same for
    every recognizer and is not counted.
    """
    with _LiveBytes() as live:
        reader.read([frames])
    engines = reader.members.values() if isinstance(reader, Ensemble) else [reader]
    weights = {
        _storage(tensor)._cdata: _storage(tensor).nbytes()
        for engine in engines
        for tensor in (*engine.recognizer.parameters(), *engine.recognizer.buffers())
    }
    return (sum(weights.values()) + live.most) / 2**20


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, each until nothing refers to it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(one)._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(_storage(tensor), given)
        return made

    def _follow(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:  # a view of what was there
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
