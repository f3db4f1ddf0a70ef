"""Many adapters of one base, of which each batch is read with one: loaded when asked for, and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from glyphrun.adapters import A, Adapter, AdapterError, B, expect_fitting, read_adapter
from glyphrun.bundle import BundleManifest, engine_of
from glyphrun.engine import Engine
from glyphrun.models.worn import Changes, Factors, Wardrobe
from glyphrun.shelved import Shelved
from glyphrun.stopwatch import milliseconds_since


def shelve(bundle: Path, manifest: BundleManifest, folders: Mapping[str, Path], most_bytes: int) -> dict[str, Shelved]:
    """Check adapters, by their names, against the bundle that they are to be read with, whose hashes were checked.

    All of their files are read, one adapter at a time, so that a damaged one is met here and not by whoever asks for it
    first. Raises AdapterError for one that is damaged, was trained on other weights or is larger than most_bytes, and for
    a bundle that can wear none.
    """
    if not folders:
        return {}
    if manifest.ensemble is not None:
        raise AdapterError(f"{bundle} is an ensemble, and adapters are read with one recognizer: serve a member alone")
    if manifest.precision.method == "int8":
        raise AdapterError(
            f"{bundle} is stored in int8, and adapters fit the weights that it was made from: serve those"
        )
    recognizer = engine_of(bundle, manifest, torch.device("cpu"), "float32").recognizer
    check, wardrobe = expect_fitting(recognizer), Wardrobe(recognizer)
    shelved: dict[str, Shelved] = {}
    for name, folder in folders.items():
        adapter = read_adapter(folder)
        check(adapter)
        for weight in (tensor.removesuffix(A) for tensor in adapter.tensors if tensor.endswith(A)):
            if not wardrobe.takes_update(weight):
                raise AdapterError(
                    f"{folder} updates {weight}, which is no linear layer: merge it into a bundle instead"
                )
        size = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in adapter.tensors.values())
        if size > most_bytes:
            raise AdapterError(
                f"the adapter {name} in {folder} takes {size / 2**20:.4g} MiB, and all that are loaded may take "
                f"{most_bytes / 2**20:.4g}: allow more"
            )
        rank, tensors = adapter.lora.rank, adapter.manifest.tensors
        shelved[name] = Shelved(folder, adapter.digest, tensors, rank, size)
    return shelved


class AdapterShelf:
    """The adapters that an engine reads with; those not used for longest make room for others.

    To be used by the one thread in which the engine reads, so that none is dropped while it is worn; others are dropped
    before one is loaded, so that never more bytes are held than there may be.
    """

    def __init__(self, engine: Engine, adapters: Mapping[str, Shelved], most_bytes: int) -> None:
        """adapters: those that were found to fit the engine's recognizer, by their names."""
        self._adapters = dict(adapters)
        self._most_bytes = most_bytes
        self._wardrobe = Wardrobe(engine.recognizer)
        self._loaded: OrderedDict[str, Changes] = OrderedDict()  # the one used last at the end

    @property
    def loaded(self) -> dict[str, int]:
        """The bytes of each adapter that is held, the one used last at the end."""
        return {name: changes.size for name, changes in self._loaded.items()}

    @contextmanager
    def worn(self, name: str) -> Iterator[float]:
        """Within it the engine reads with this adapter, and after it as before; tells how many ms it took to load, 0 if it was.

        Raises AdapterError if its files are no longer those that were checked, KeyError for a name that there is not.
        """
        began, known = perf_counter(), name in self._loaded
        if not known:
            self._load(name, self._adapters[name])
        self._loaded.move_to_end(name)
        spent = 0.0 if known else milliseconds_since(began)
        with self._wardrobe.worn(self._loaded[name]):
            yield spent

    def _load(self, name: str, shelved: Shelved) -> None:
        while self._loaded and sum(self.loaded.values()) + shelved.size > self._most_bytes:
            self._loaded.popitem(last=False)
        adapter = read_adapter(shelved.folder)
        if adapter.digest != shelved.manifest:
            raise AdapterError(f"{shelved.folder} is another adapter than when the server started: start it again")
        self._loaded[name] = self._changes(adapter)

    def _changes(self, adapter: Adapter) -> Changes:
        places = self._wardrobe.tensors
        updates: dict[str, Factors] = {}
        whole: dict[str, Tensor] = {}
        for name, tensor in adapter.tensors.items():
            weight = name.removesuffix(A)
            if (factors := adapter.factors(weight)) is not None:
                a, b = factors
                updates[weight] = a.to(places[weight], copy=True), b.to(places[weight])
            elif not name.endswith(B):
                whole[name] = tensor.to(places[name], copy=True)  # what is read from a file stays tied to it
        return Changes(updates, whole)
