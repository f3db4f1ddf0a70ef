"""The winner as it will be served: what it reads with, and how it becomes a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from glyphrun.bundle import load_engine, save_bundle
from glyphrun.bundle_copy import copy_bundle
from glyphrun.data.sample import read_card
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.ensemble import Ensemble
from glyphrun.ensemble_bundle import save_ensemble
from glyphrun.members import EnsembleSettings
from glyphrun.sweeps.point_costs import after_vote, reader_of
from glyphrun.sweeps.trained import labels, trained_engine, trained_recognizer
from glyphrun.sweeps.trials import TrialRecord
from glyphrun.sweeps.ways import Way, Ways

# Called with a folder, and with the name, decode settings, metrics and provenance of the bundle.
Save = Callable[[Path, str, DecodeSettings, dict[str, Any], dict[str, str]], None]


@dataclass(frozen=True)
class Winner:
    """trials: whose recognizers read, the first tells its name; decode: the settings in which confidence is to be settled."""

    trials: list[str]
    reader: Engine | Ensemble
    decode: DecodeSettings
    save: Save

    @property
    def precision(self) -> str:
        """In which it reads."""
        engines = self.reader.members.values() if isinstance(self.reader, Ensemble) else [self.reader]
        return " + ".join(dict.fromkeys(engine.precision for engine in engines))


def winning_trial(record: TrialRecord, dataset: Path) -> Winner:
    """A trial that is read as it was in training."""
    engine = trained_engine(record, read_card(dataset).charset, labels(dataset))

    def save(folder: Path, name: str, decode: DecodeSettings, metrics: dict[str, Any], origin: dict[str, str]) -> None:
        save_bundle(
            folder,
            name=name,
            recognizer=trained_recognizer(
                record, engine.codec
            ),  # as trained; the engine may hold it in lower precision
            codec=engine.codec,
            processor=engine.processor,
            decode=decode,
            metrics=metrics,
            provenance=origin,
        )

    return Winner([record.trial.id], engine, record.trial.decode, save)


def winning_way(way: Way, ways: Ways) -> Winner:
    """A way of reading, of one survivor or of several."""
    point, readers = way.point, {name: ways.readers[name] for name in way.point.members}
    reader = reader_of(point, {name: load_engine(folder) for name, folder in readers.items()})

    def save(folder: Path, name: str, decode: DecodeSettings, metrics: dict[str, Any], origin: dict[str, str]) -> None:
        if point.ensemble_vote is None:
            (source,) = readers.values()
            copy_bundle(source, folder, name=name, decode=decode, metrics=metrics, provenance=origin)
            return
        with TemporaryDirectory(prefix=".members-", dir=folder.parent) as aside:
            members = {member: Path(aside) / member for member in readers}
            for member, own in point.ways.items():
                provenance = {**origin, "trial": member}
                copy_bundle(
                    readers[member], members[member], name=member, decode=own, metrics={}, provenance=provenance
                )
            save_ensemble(
                folder,
                name=name,
                members=members,
                settings=EnsembleSettings(vote=point.ensemble_vote),
                decode=decode,
                metrics=metrics,
                provenance=origin,
                files=next(iter(readers.values())),
            )

    return Winner(list(point.members), reader, after_vote(point), save)
