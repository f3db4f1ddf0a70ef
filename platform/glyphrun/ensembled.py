"""An ensemble made of bundles, scored and timed next to its members at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from glyphrun.bundle import SUMS, BundleError, BundleManifest, engine_of
from glyphrun.data.batches import load_split
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.ensemble import Ensemble
from glyphrun.ensemble_bundle import member_manifests, save_ensemble
from glyphrun.evaluation.metrics import count_errors
from glyphrun.evaluation.side_by_side import Figures, side_by_side
from glyphrun.evaluation.significance import paired_bootstrap
from glyphrun.members import EnsembleSettings

SHOWN = ("n", "exact", "exact_ci", "cer", "wer")


@dataclass(frozen=True)
class Comparison:
    """An ensemble beside its members; figures are by the members' names, and None if there was no data set.

    remarks: sentences on what the figures do not show.
    """

    vote: str
    ensemble: Figures | None
    members: dict[str, Figures | None]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it but what was read."""
        return {
            "vote": self.vote,
            "ensemble": _json(self.ensemble),
            "members": {name: _json(figures) for name, figures in self.members.items()},
            "remarks": list(self.remarks),
        }


def make_ensemble(
    members: Mapping[str, Path],
    out: Path,
    settings: EnsembleSettings,
    dataset: Path | None = None,
    split: str = "val",
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """Write one bundle of several, whole or not at all, and compare it with them on a split of a data set.

    An average searches as its first member does. Raises BundleError for a folder that is no recognizer's bundle or an
    ``out`` that exists, ValueError for settings or members that do not fit, EnsembleError if too few members answer.
    """
    tell = tell or (lambda _: None)
    if out.exists():
        raise BundleError(f"{out} exists already: choose another folder or remove it")
    if len(members) < 2:
        raise ValueError(
            f"an ensemble has several members and this one would have {', '.join(members) or 'none'}: name more"
        )
    settings.check(list(members))
    tell("the members")
    manifests = member_manifests(members)
    first = next(iter(members))
    averaged = settings.vote == "average"
    decode = manifests[first].decode if averaged else DecodeSettings(vote_floor=0.0)
    engines = {name: engine_of(path, manifests[name], None, None) for name, path in members.items()}
    ensemble = Ensemble(engines, settings, decode, files=members[first])
    figures: dict[str, Figures | None] = dict.fromkeys(members)
    joint, metrics = None, {}
    remarks: tuple[str, ...] = ("without a data set nothing was scored or timed",)
    if dataset is not None:
        arrays = {processor: load_split(dataset, split, processor) for processor in ensemble.processors}
        truths = arrays[ensemble.processor].texts
        joint, *alone = side_by_side([ensemble, *engines.values()], dataset, split, arrays, tell)
        by_member = dict(zip(members, alone, strict=True))
        figures.update(by_member)
        metrics = {split: _scores(joint)}
        remarks = (against_the_best(truths, joint, by_member), *left_out(joint))
    save_ensemble(
        out,
        name=out.name,
        members=members,
        settings=settings,
        decode=decode,
        metrics=metrics,
        provenance=_provenance(members, manifests),
        files=members[first],
    )
    return Comparison(settings.vote, joint, figures, remarks)


def against_the_best(truths: tuple[str, ...], joint: Figures, members: Mapping[str, Figures]) -> str:
    """Whether the ensemble reads more items right than the best of its members, by a paired bootstrap."""
    best = max(members, key=lambda name: members[name].scores.exact.value)
    wrong = [
        ~count_errors(truths, [one.text for one in figures.predictions]).exact for figures in (joint, members[best])
    ]
    found = paired_bootstrap(*wrong)
    gained, low, high = (-100 * share for share in (found.difference, found.high, found.low))
    return (
        f"exact match changes by {gained:+.2f} points against {best}, the best member (95 % interval {low:+.2f} to "
        f"{high:+.2f}, n = {len(truths)})"
    )


def left_out(joint: Figures) -> list[str]:
    """Which members did not take part in all answers, and why not."""
    silent = Counter(
        (ballot.member, ballot.status)
        for prediction in joint.predictions
        for ballot in prediction.members
        if ballot.status not in ("voted", "averaged")
    )
    return [
        f"{member} was left out of {times} of {len(joint.predictions)} answers: {status}"
        for (member, status), times in silent.items()
    ]


def shown(comparison: Comparison) -> Table:
    """The members and then the ensemble, for a terminal."""
    table = Table("", "exact", "95 % interval", "CER", "ms an item", "images/s")
    for name, figures in (*comparison.members.items(), (f"together, {comparison.vote}", comparison.ensemble)):
        if figures is None:
            table.add_row(name)
            continue
        scores = figures.scores.to_json()
        table.add_row(
            name,
            f"{scores['exact']:.4f}",
            " to ".join(f"{end:.4f}" for end in scores["exact_ci"]),
            "–" if scores["cer"] is None else f"{scores['cer']:.4f}",
            f"{figures.ms:.2f}",
            f"{figures.images_per_s:.1f}",
        )
    return table


def _provenance(members: Mapping[str, Path], manifests: Mapping[str, BundleManifest]) -> dict[str, str]:
    """What all members have in common, and which bundles they are."""
    first, *others = (manifest.provenance for manifest in manifests.values())
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    sums = {name: hashlib.sha256((path / SUMS).read_bytes()).hexdigest() for name, path in members.items()}
    return {**common, **{f"member {name}": digest for name, digest in sums.items()}}


def _scores(figures: Figures) -> dict[str, Any]:
    scores = figures.scores.to_json()
    return {name: scores[name] for name in SHOWN}


def _json(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {**_scores(figures), "ms": figures.ms, "images_per_s": figures.images_per_s}
