"""What differs between two versions of a model: settings, scores, weights, and how they read the same items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from glyphrun.bundle import WEIGHTS, BundleManifest
from glyphrun.registry import Registry
from glyphrun.text import normalise
from glyphrun.versions import Readings

SETTINGS = ("recognizer", "codec", "processor", "decode", "precision", "ensemble", "provenance")


class Change(BaseModel):
    """A value in the one and in the other version; null where there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    one: Any
    other: Any


class ItemChange(BaseModel):
    """An item that the two versions read differently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample_id: str
    truth: str
    one: str
    other: str


class ItemChanges(BaseModel):
    """Items of a split that the versions read differently: those that only one of them reads right, and the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: str
    n: int
    only_one_right: tuple[ItemChange, ...]
    only_other_right: tuple[ItemChange, ...]
    both_wrong: tuple[ItemChange, ...]


class VersionDiff(BaseModel):
    """metrics: scores of splits that both were scored on. weights: files of weights that differ or only one has.

    items: null if it is not known what both read of the same items.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    one: int
    other: int
    settings: tuple[Change, ...]
    metrics: tuple[Change, ...]
    weights: tuple[Change, ...]
    items: ItemChanges | None


def diff_versions(registry: Registry, name: str, one: int, other: int, readings: Readings | None = None) -> VersionDiff:
    """Compare two versions of a name; readings: what they read, candidate for the one and champion for the other.

    By default what was kept when one of them was promoted. Raises RegistryError.
    """
    promotions = [registry.promotion(name, version) for version in (one, other)]
    manifests = [registry.manifest(name, version) for version in (one, other)]
    weights = [
        {file: digest for file, digest in registry.sums(name, version).items() if file.endswith(WEIGHTS)}
        for version in (one, other)
    ]
    if readings is None:
        compared = [promotion.gate["champion"] if promotion.gate else None for promotion in promotions]
        readings = _kept(registry, name, (one, compared[0]), (other, compared[1]))
    return VersionDiff(
        name=name,
        one=one,
        other=other,
        settings=_changes(*map(_flat, manifests)),
        metrics=_changes(*map(_scores, manifests), both=True),
        weights=_changes(*weights),
        items=_item_changes(readings) if readings else None,
    )


def _kept(registry: Registry, name: str, one: tuple[int, int | None], other: tuple[int, int | None]) -> Readings | None:
    """Readings of the two from what is kept of versions with their champions, in the order of the call."""
    first, second = registry.readings(name, one[0]), registry.readings(name, other[0])
    if first and one[1] == other[0]:
        return first
    if second and other[1] == one[0]:
        return second.model_copy(update={"candidate": second.champion, "champion": second.candidate})
    if first and second:
        same = ("dataset_hash", "split", "sample_ids")
        if all(getattr(first, key) == getattr(second, key) for key in same):
            return first.model_copy(update={"champion": second.candidate})
    return None


def _item_changes(readings: Readings) -> ItemChanges:
    groups: dict[str, list[ItemChange]] = {"one": [], "other": [], "neither": []}
    rows = zip(readings.sample_ids, readings.truths, readings.candidate, readings.champion, strict=True)
    for sample_id, truth, one, other in rows:
        if one != other:
            right = normalise(truth)
            group = "one" if normalise(one) == right else "other" if normalise(other) == right else "neither"
            groups[group].append(ItemChange(sample_id=sample_id, truth=truth, one=one, other=other))
    return ItemChanges(
        dataset=readings.dataset,
        split=readings.split,
        n=len(readings.truths),
        only_one_right=tuple(groups["one"]),
        only_other_right=tuple(groups["other"]),
        both_wrong=tuple(groups["neither"]),
    )


def _changes(one: Mapping[str, Any], other: Mapping[str, Any], *, both: bool = False) -> tuple[Change, ...]:
    keys = [key for key in {**one, **other} if not both or (key in one and key in other)]
    return tuple(
        Change(key=key, one=one.get(key), other=other.get(key)) for key in keys if one.get(key) != other.get(key)
    )


def _scores(manifest: BundleManifest) -> dict[str, float]:
    return {
        f"{split}.{metric}": scores[metric]
        for split, scores in manifest.metrics.items()
        for metric in ("n", "exact", "cer", "wer")
        if scores.get(metric) is not None
    }


def _flat(manifest: BundleManifest) -> dict[str, Any]:
    return dict(_leaves(manifest.model_dump(mode="json", include=set(SETTINGS))))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inside in value.items():
            yield from _leaves(inside, f"{path}.{key}" if path else key)
    else:
        yield path, value
