"""Adapters: what a LoRA training changed, alone on disk beside nothing of its base, and several of them made one.

A folder with adapter.safetensors and adapter.json. The tensors have the names of the plain recognizer's: those trained in
full and the buffers under their own, the two factors of an update under the weight's with ``.lora_A`` and ``.lora_B``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glyphrun.bundle import BundleError, load_engine, read_manifest, save_bundle
from glyphrun.engine import Engine
from glyphrun.models.lora import (
    LoraSettings,
    apply_lora,
    carries_lora,
    merge_lora,
    plain_buffers,
    plain_parameters,
    updates,
)
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.state import difference, digests

TENSORS, MANIFEST = "adapter.safetensors", "adapter.json"
A, B = ".lora_A", ".lora_B"

MergeMethod = Literal["average", "stack"]


class AdapterError(ValueError):
    """An adapter that cannot be read, written or put on a recognizer, with its folder and what to do."""


class AdapterManifest(BaseModel):
    """What an adapter says of itself.

    base: the sha256 of every weight that was frozen while it was trained; tensors: that of the other file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    lora: LoraSettings
    recognizer: dict[str, Any]
    base: dict[str, str]
    tensors: str


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read; digest: the sha256 of its manifest's file, which has that of the tensors' in it."""

    folder: Path
    manifest: AdapterManifest
    digest: str
    tensors: dict[str, Tensor]

    @property
    def lora(self) -> LoraSettings:
        return self.manifest.lora

    def factors(self, weight: str) -> tuple[Tensor, Tensor] | None:
        """(rank, inputs) and (outputs, rank) of a weight's update, the second scaled; None if it has none."""
        if weight + A not in self.tensors:
            return None
        return self.tensors[weight + A], self.tensors[weight + B] * (self.lora.alpha / self.lora.rank)


def save_adapter(folder: Path, recognizer: Recognizer, lora: LoraSettings) -> None:
    """Write what LoRA changed in a recognizer, whole or not at all. Raises AdapterError if the folder exists."""
    if not carries_lora(recognizer):
        raise AdapterError(f"this recognizer carries no LoRA, so {folder} would hold no adapter: save a bundle")
    if any(
        (len(update.a), update.scaling) != (lora.rank, lora.alpha / lora.rank)
        for update in updates(recognizer).values()
    ):
        raise AdapterError(
            f"this recognizer's LoRA is not of rank {lora.rank} and alpha {lora.alpha:g}: give its settings"
        )
    if folder.exists():
        raise AdapterError(f"{folder} exists already: choose another folder or remove it")
    frozen = {name: value for name, value in plain_parameters(recognizer).items() if not value.requires_grad}
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        save_file({name: value.cpu().contiguous() for name, value in _trained(recognizer).items()}, aside / TENSORS)
        manifest = AdapterManifest(
            lora=lora,
            recognizer=recognizer.settings.model_dump(mode="json"),
            base=digests(frozen),
            tensors=_sha256(aside / TENSORS),
        )
        (aside / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@torch.no_grad()
def load_adapter(folder: Path, recognizer: Recognizer) -> LoraSettings:
    """Put an adapter on the plain recognizer that it was trained on, to train on or to merge; return its settings.

    Raises AdapterError if it cannot be read or was trained on other weights; the recognizer is then as it was.
    """
    adapter = read_adapter(folder)
    expect_fitting(recognizer)(adapter)
    apply_lora(recognizer, adapter.lora)
    places = _trained(recognizer)
    if places.keys() != adapter.tensors.keys():
        merge_lora(recognizer)  # fresh updates add nothing
        wrong = sorted(places.keys() ^ adapter.tensors.keys())
        raise AdapterError(f"{folder} does not hold what its {MANIFEST} says, {wrong[0]} first: copy it again")
    for name, value in adapter.tensors.items():
        places[name].copy_(value)
    return adapter.lora


def read_adapter(folder: Path) -> Adapter:
    """An adapter's settings and tensors. Raises AdapterError naming the file that is missing or damaged."""
    for file in (MANIFEST, TENSORS):
        if not (folder / file).is_file():
            raise AdapterError(f"{folder} is no adapter: it has no {file}")
    try:
        manifest = AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        raise AdapterError(f"{folder / MANIFEST} is damaged, copy the adapter again: {error}") from None
    if _sha256(folder / TENSORS) != manifest.tensors:
        raise AdapterError(f"{folder / TENSORS} was changed: its sha256 is not the one in {MANIFEST}; copy it again")
    return Adapter(folder, manifest, _sha256(folder / MANIFEST), load_file(folder / TENSORS))


def expect_fitting(recognizer: Recognizer) -> Callable[[Adapter], None]:
    """A check of adapters against a plain recognizer, whose weights are hashed once.

    It raises AdapterError for one that was trained on other weights: what an adapter holds has a place, and it holds or
    knows all that there is. Raises AdapterError if the recognizer is not plain.
    """
    if carries_lora(recognizer):
        raise AdapterError("this recognizer carries LoRA already: merge it first, or load its base again")
    kind = getattr(recognizer.settings, "kind", "recognizer")
    places = {**plain_parameters(recognizer), **plain_buffers(recognizer)}
    found = digests(plain_parameters(recognizer))

    def check(adapter: Adapter) -> None:
        trained_on, base = adapter.manifest.recognizer.get("kind", "recognizer"), adapter.manifest.base
        if trained_on != kind:
            raise AdapterError(f"{adapter.folder} was trained on a {trained_on}, and this is a {kind}")
        wrong = difference(base, found)
        if not wrong:
            unknown = [name for name in places if name not in base and name not in adapter.tensors]
            wrong = f"it knows no {unknown[0]}" if unknown else _misfit(adapter, places)
        if wrong:
            raise AdapterError(
                f"{adapter.folder} was trained on other weights than this {kind} has: {wrong}; give the recognizer that "
                "its training started from"
            )

    return check


@torch.no_grad()
def merge_adapters(
    base: Recognizer,
    folders: Sequence[Path],
    method: MergeMethod = "average",
    weights: Sequence[float] | None = None,
) -> None:
    """Add several adapters of one base to it, in place.

    The update that a weight gets is the mean of the adapters' updates, by their weights («average»), or their sum, each
    multiplied by its weight («stack»); 1 each if none are given. Updates are products B·A, so both are made by laying the
    factors side by side, as one update of all ranks together: the means of A and of B would give another product. What
    was trained in full is combined in the same way, by its distance from the base; statistics of batches are averaged,
    whatever the method, since a sum of them is none.
    Raises AdapterError if one cannot be read or was trained on other weights; the base is then as it was.
    """
    shares = _shares(len(folders), method, weights)
    adapters = [read_adapter(folder) for folder in folders]
    check = expect_fitting(base)
    for adapter in adapters:
        check(adapter)
    for name, parameter in plain_parameters(base).items():
        sides = [
            (share * b, a)
            for share, factors in zip(shares, (adapter.factors(name) for adapter in adapters), strict=True)
            if factors
            for a, b in [factors]
        ]
        change = torch.zeros_like(parameter)
        if sides:
            change += torch.cat([b for b, _ in sides], dim=1).to(change) @ torch.cat([a for _, a in sides]).to(change)
        for share, adapter in zip(shares, adapters, strict=True):
            if name in adapter.tensors:
                change += share * (adapter.tensors[name].to(parameter) - parameter)
        parameter.add_(change)
    for name, buffer in plain_buffers(base).items():
        held = torch.stack([adapter.tensors[name].double() for adapter in adapters])
        mean = torch.tensordot(torch.tensor(shares).double() / sum(shares), held, dims=1)
        buffer.copy_(mean if buffer.is_floating_point() else mean.round())


def merge_into_bundle(
    bundle: Path,
    adapters: Sequence[Path],
    out: Path,
    method: MergeMethod = "average",
    weights: Sequence[float] | None = None,
) -> None:
    """Write the bundle that a bundle and adapters trained on its weights make together; it has no scores of its own yet.

    Raises AdapterError or BundleError; nothing is written then.
    """
    manifest = read_manifest(bundle)
    engine = load_engine(bundle, torch.device("cpu"), "float32")
    merge_into_engine(engine, adapters, out, manifest.name, manifest.provenance, method, weights)


def merge_into_engine(
    engine: Engine,
    adapters: Sequence[Path],
    out: Path,
    name: str,
    provenance: dict[str, str],
    method: MergeMethod = "average",
    weights: Sequence[float] | None = None,
) -> None:
    """The same of a base that lies in no bundle; engine: what reads with it, in float32, and is changed."""
    if out.exists():
        raise BundleError(f"{out} exists already: choose another folder or remove it")
    merge_adapters(engine.recognizer, adapters, method, weights)
    shares = _shares(len(adapters), method, weights)
    parents = ", ".join(f"{share:g} × {folder.name}" for share, folder in zip(shares, adapters, strict=True))
    save_bundle(
        out,
        name=name,
        recognizer=engine.recognizer,
        codec=engine.codec,
        processor=engine.processor,
        decode=engine.settings,
        metrics={},
        provenance={**provenance, "adapters": f"{method} of {parents}"},
        files=engine.files,
    )


def _trained(recognizer: Recognizer) -> dict[str, Tensor]:
    """The tensors that an adapter holds, under their names in its file."""
    found: dict[str, Tensor] = {}
    for name, update in updates(recognizer).items():
        found[name + A], found[name + B] = update.a.detach(), update.b.detach()
    parameters = plain_parameters(recognizer)
    found.update({name: value.detach() for name, value in parameters.items() if value.requires_grad})
    return found | plain_buffers(recognizer)


def _misfit(adapter: Adapter, places: dict[str, Tensor]) -> str:
    """Which tensor of an adapter has no place of its shape, in words; "" if all have one."""
    for name, value in adapter.tensors.items():
        weight = places.get(name.removesuffix(A).removesuffix(B))
        if weight is None:
            return f"{name} has no place"
        expected = tuple(weight.shape)
        if name.endswith(A):
            expected = (adapter.lora.rank, expected[1])
        elif name.endswith(B):
            expected = (expected[0], adapter.lora.rank)
        if tuple(value.shape) != expected:
            return f"{name} is {tuple(value.shape)} and its place {expected}"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shares(count: int, method: MergeMethod, weights: Sequence[float] | None) -> list[float]:
    """By how much each of several adapters counts."""
    if method not in get_args(MergeMethod):
        raise AdapterError(f"adapters are not merged by {method!r}: choose {' or '.join(get_args(MergeMethod))}")
    if not count:
        raise AdapterError("no adapter was given: name at least one folder")
    shares = [1.0] * count if weights is None else list(weights)
    if len(shares) != count:
        raise AdapterError(f"{count} adapters have {len(shares)} weights: give one each, or none")
    if not all(math.isfinite(share) and share > 0 for share in shares):
        raise AdapterError(f"the weights of adapters are {shares}: give numbers above 0")
    return [share / sum(shares) for share in shares] if method == "average" else shares
