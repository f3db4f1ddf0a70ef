"""The gate of a promotion: the candidate against the current champion on held-out items, and its latency when served.

The first version of a name has no champion and is measured against a latency budget alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from glyphrun.data.batches import load_split
from glyphrun.data.sample import DatasetError, dataset_hash, read_card
from glyphrun.device import default_device, device_name
from glyphrun.ensemble import Reader
from glyphrun.ensemble_bundle import load_reader
from glyphrun.evaluation.comparison import Comparison, compare
from glyphrun.evaluation.cost import measure_batches
from glyphrun.evaluation.evaluate import read_split
from glyphrun.evaluation.timed_items import noise_items, timed_items
from glyphrun.registry import Promoted, Registry, expect_name
from glyphrun.run_folder import PromotionError, bundle_of, dataset_of, target_of
from glyphrun.target import Target
from glyphrun.versions import Readings

MARGIN = 0.02
TIMED_ITEMS, TIMED_BATCHES, TIMED_S = 64, 40, 20.0
FRAMES_OF_NOISE = 8

Progress = Callable[[int, int], None]


class PromotionRefused(ValueError):
    """The gate refuses the candidate; the message says by how much it fails."""


class Latency(BaseModel):
    """Milliseconds within which a percentile of batches ended, with what they were measured under.

    items: the data set that they come from, or «noise». batches: how many were measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ms: float
    target: Target
    items: str
    batches: int
    device: str

    def failures(self) -> list[str]:
        """By how much the budget is missed; empty if it is met."""
        budget, target = self.target.budget, self.target
        if self.ms <= budget.latency_ms:
            return []
        what = f"batches of {target.batch} items" if target.batch > 1 else "items"
        elsewhere = target.gpu and not torch.cuda.is_available()
        return [
            f"latency: {budget.percentile:g} % of {what} end within {self.ms:.1f} ms on {self.device}, "
            f"{self.ms - budget.latency_ms:.1f} ms over the budget of {budget.latency_ms:g} ms in {target.name}"
            + (", which is for a GPU: measure on one, or use --force" if elsewhere else "")
        ]


class Gate(BaseModel):
    """What the gate found. champion: the version that was current, 0 for none; failures: why it refuses, if it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    champion: int
    margin: float
    comparison: Comparison | None = None
    dataset: str | None = None
    dataset_hash: str | None = None
    split: str | None = None
    latency: Latency | None = None
    failures: tuple[str, ...] = ()


def promote_run(
    registry: Registry,
    run: Path,
    name: str,
    *,
    at: datetime,
    dataset: Path | None = None,
    split: str = "test",
    target: Target | None = None,
    margin: float = MARGIN,
    force: bool = False,
    reason: str | None = None,
    place: str | None = None,
    progress: Progress | None = None,
) -> tuple[Promoted, Gate]:
    """Promote the bundle of a finished run, or a bundle's folder, if the gate lets it pass; force does so in any case.

    dataset, target: those of the run by default. place: where the run is kept, if not in that folder. margin: the share of items, and of characters, that it must be shown not
    to read worse by. Raises PromotionRefused, PromotionError, and the errors of a bundle, data set or registry.
    """
    expect_name(name)
    bundle = bundle_of(run)
    gate, readings = Gate(champion=registry.current(name) or 0, margin=margin), None
    try:
        gate, readings = measure(
            registry,
            bundle,
            name,
            gate,
            dataset=dataset or dataset_of(run),
            split=split,
            target=target or target_of(run),
            progress=progress,
        )
    except (ValueError, OSError, RuntimeError) as error:
        if not force:
            raise
        gate = gate.model_copy(update={"failures": (f"not measured: {error}",)})
    if gate.failures and not force:
        raise PromotionRefused("\n".join(gate.failures))
    promoted = registry.promote(
        bundle,
        name,
        at=at,
        readings=readings,
        run=place or str(run.absolute()),
        forced=force,
        reason=reason,
        compared_with=None if force else gate.champion,
        gate=gate.model_dump(mode="json"),
    )
    return promoted, gate


def measure(
    registry: Registry,
    bundle: Path,
    name: str,
    gate: Gate,
    *,
    dataset: Path | None,
    split: str,
    target: Target | None,
    progress: Progress | None = None,
) -> tuple[Gate, Readings | None]:
    """Figures of a bundle beside those of the gate's champion, both read in the target's way. Raises PromotionError."""
    if gate.champion and dataset is None:
        raise PromotionError(
            f"version {gate.champion} of {name} is current, and the candidate can only be compared with it on held-out "
            "items: give --dataset, or --force to promote it unseen"
        )
    device = default_device() if target is None or target.gpu else torch.device("cpu")
    precision = target.precision if target else None
    candidate = load_reader(bundle, device, precision)
    figures: dict[str, object] = {}
    failures: list[str] = []
    readings = None
    if target is not None:
        figures["latency"] = latency = _latency(candidate, target, dataset, split, device)
        failures += latency.failures()
    if gate.champion and dataset is not None:
        champion = load_reader(registry.resolve(f"{name}@{gate.champion}"), device, precision)
        readings = read_both(candidate, champion, dataset, split, progress)
        comparison = compare(readings.truths, readings.candidate, readings.champion)
        failures += comparison.failures(gate.margin)
        figures |= {
            "comparison": comparison,
            "dataset": readings.dataset,
            "dataset_hash": readings.dataset_hash,
            "split": split,
        }
    return gate.model_copy(update={**figures, "failures": tuple(failures)}), readings


def read_both(
    candidate: Reader, champion: Reader, dataset: Path, split: str, progress: Progress | None = None
) -> Readings:
    """What two readers say of the labelled items of a split."""
    card = read_card(dataset)
    if split not in card.counts:
        raise DatasetError(
            f"{dataset} has no split {split!r}; it has {', '.join(card.counts)}: choose one with --split"
        )
    done = 0

    def advance(items: int) -> None:
        nonlocal done
        done += items
        if progress:
            progress(done, 2 * card.counts[split])

    texts = []
    for reader in (candidate, champion):
        arrays = [load_split(dataset, split, processor) for processor in reader.processors]
        texts.append(tuple(prediction.text for prediction in read_split(reader, arrays, advance)))
    return Readings(
        dataset=card.name,
        dataset_hash=dataset_hash(dataset),
        split=split,
        sample_ids=arrays[0].sample_ids,
        truths=arrays[0].texts,
        candidate=texts[0],
        champion=texts[1],
    )


def _latency(reader: Reader, target: Target, dataset: Path | None, split: str, device: torch.device) -> Latency:
    frames = target.budget.frames
    items = (
        noise_items(reader.processor, frames or FRAMES_OF_NOISE)
        if dataset is None
        else timed_items(dataset, split, TIMED_ITEMS, frames)
    )
    times = measure_batches(
        reader, items, batch=target.batch, repeats=TIMED_BATCHES, seconds=TIMED_S, threads=target.threads
    )
    return Latency(
        ms=float(np.percentile(times, target.budget.percentile)),
        target=target,
        items="noise" if dataset is None else read_card(dataset).name,
        batches=len(times),
        device=device_name(device),
    )
