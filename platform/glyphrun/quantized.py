"""A bundle in less space, scored and timed next to the one it was made from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from glyphrun.bundle import SUMS, WEIGHTS, BundleError, load_engine, read_manifest, save_bundle, write_manifest
from glyphrun.data.batches import load_split
from glyphrun.engine import Engine
from glyphrun.evaluation.side_by_side import Figures, side_by_side
from glyphrun.models.inference import computes_in_int8
from glyphrun.models.quantize import Method, computes_in

SPLIT = "val"
CER_POINT = 0.01  # what a method may lose unmentioned


@dataclass(frozen=True)
class Measured:
    """One of the two bundles.

    size: bytes of its weights. computed_in: what its products are computed in on this machine. ms: one item alone from
    encoded frames to text, median; images_per_s: frames of the split read in batches. exact and cer: of the split; cer is
    None if no label has a character, and all but the size if there was no data set.
    """

    size: int
    computed_in: str
    ms: float | None = None
    images_per_s: float | None = None
    exact: float | None = None
    cer: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What a method changed. remarks: sentences on what the figures do not show."""

    method: Method
    parent: Measured
    quantized: Measured
    remarks: tuple[str, ...]

    @property
    def size_ratio(self) -> float:
        """Bytes after to bytes before."""
        return self.quantized.size / self.parent.size

    @property
    def times_as_fast(self) -> float | None:
        """Images a second after to before."""
        before, after = self.parent.images_per_s, self.quantized.images_per_s
        return None if before is None or after is None else after / before

    @property
    def cer_lost(self) -> float | None:
        """CER after less CER before."""
        before, after = self.parent.cer, self.quantized.cer
        return None if before is None or after is None else after - before

    def to_json(self) -> dict[str, Any]:
        """All of it, with the ratios."""
        ratios = {"size_ratio": self.size_ratio, "times_as_fast": self.times_as_fast, "cer_lost": self.cer_lost}
        return {**asdict(self), **ratios}


def quantize_bundle(
    bundle: Path,
    out: Path,
    method: Method,
    dataset: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Write a bundle with the weights of another stored by a method, and compare both on val of a data set.

    Without a data set only the sizes are compared, and the new bundle carries no scores. Raises BundleError or ValueError:
    ``out`` exists, the bundle is quantized already, or the method changes nothing in it. Nothing half-written stays.
    """
    tell = progress or (lambda _: None)
    if method == "float32":
        raise ValueError("float32 is what bundles are trained in: choose int8, float16 or bfloat16")
    if out.exists():
        raise BundleError(f"{out} exists already: choose another folder or remove it")
    manifest = read_manifest(bundle)
    if manifest.precision.method != "float32":
        raise BundleError(
            f"{bundle} is stored in {manifest.precision.method} already: quantize the one it was made from"
        )
    tell("the bundle")
    source = load_engine(bundle, torch.device("cpu"), "float32")
    arrays = None if dataset is None else load_split(dataset, SPLIT, source.processor)
    aside = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        save_bundle(
            aside,
            name=manifest.name,
            recognizer=source.recognizer,
            codec=source.codec,
            processor=source.processor,
            decode=source.settings,
            metrics={},
            provenance={**manifest.provenance, "parent": hashlib.sha256((bundle / SUMS).read_bytes()).hexdigest()},
            method=method,
            files=bundle,
        )
        del source
        tell("what it becomes: its blocks are compiled if that pays")
        engines = (load_engine(bundle), load_engine(aside))
        parent, quantized = (
            Measured((folder / WEIGHTS).stat().st_size, _computed_in(engine))
            for folder, engine in zip((bundle, aside), engines, strict=True)
        )
        remarks = _on_this_machine(method, engines[1])
        if dataset is None or arrays is None:
            remarks = ("without a data set nothing was scored or timed", *remarks)
        else:
            before, after = side_by_side(engines, dataset, SPLIT, {engines[0].processor: arrays}, tell)
            parent, quantized = _with(parent, before), _with(quantized, after)
            remarks = (*remarks, *losses(parent, quantized))
            metrics = {SPLIT: after.scores.to_json()}
            write_manifest(aside, read_manifest(aside).model_copy(update={"metrics": metrics}))
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Comparison(method, parent, quantized, remarks)


def losses(parent: Measured, quantized: Measured) -> tuple[str, ...]:
    """What speaks against the method."""
    found = []
    if parent.cer is not None and quantized.cer is not None and quantized.cer - parent.cer > CER_POINT:
        points = 100 * (quantized.cer - parent.cer)
        found.append(f"the CER rose by {points:.1f} points, more than one: a half precision keeps more")
    if parent.computed_in != quantized.computed_in and (parent.images_per_s or 0) > (quantized.images_per_s or 0):
        found.append("it reads more slowly than its parent here")
    return tuple(found)


def shown(comparison: Comparison) -> Table:
    """Both bundles side by side, for a terminal."""
    before, after = comparison.parent, comparison.quantized
    table = Table("", "before", "after", "change")
    table.add_row("computed in", before.computed_in, after.computed_in, "")
    sizes = [f"{measured.size / 2**20:.2f} MiB" for measured in (before, after)]
    table.add_row("size of the weights", *sizes, f"× {comparison.size_ratio:.2f}")
    if before.ms is not None and after.ms is not None:
        table.add_row("ms an item", f"{before.ms:.2f}", f"{after.ms:.2f}", f"× {after.ms / before.ms:.2f}")
    if before.images_per_s is not None and after.images_per_s is not None:
        rates = [f"{measured:.1f}" for measured in (before.images_per_s, after.images_per_s)]
        table.add_row("images/s", *rates, f"× {after.images_per_s / before.images_per_s:.2f}")
    for name, old, new in (("exact", before.exact, after.exact), ("CER", before.cer, after.cer)):
        if old is not None and new is not None:
            table.add_row(name, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}")
    return table


def _with(measured: Measured, figures: Figures) -> Measured:
    scores = figures.scores
    return replace(
        measured,
        ms=figures.ms,
        images_per_s=figures.images_per_s,
        exact=scores.exact.value,
        cer=scores.to_json()["cer"],
    )


def _computed_in(engine: Engine) -> str:
    return "int8" if computes_in_int8(engine.recognizer) else engine.precision


def _on_this_machine(method: Method, engine: Engine) -> tuple[str, ...]:
    """Why the times are not those of the method, if they are not."""
    actual = _computed_in(engine)
    if actual == method:
        return ()
    if computes_in(method, engine.device):
        return (f"its layers are so small that int8 would slow them down: they are computed in {actual} here",)
    where = "GPU" if engine.device.type == "cuda" else "processor"
    return (f"recognizers are not computed in {method} on this {where}: times are those of {actual}",)
