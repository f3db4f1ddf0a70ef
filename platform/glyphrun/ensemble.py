"""Ensembles: several recognizers read the same items, each in its own way, and vote; or read them as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from glyphrun.batching import batches_of_similar_size
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.encoded import Embedding
from glyphrun.engine import Engine
from glyphrun.images import FrameStack, ImageProcessor, prepare_frames
from glyphrun.members import EnsembleSettings, Jury, Reading, ballot_of, no_features, require_quorum, vote_of_members
from glyphrun.models.average import MemberFailed, average
from glyphrun.prediction import Prediction
from glyphrun.stopwatch import milliseconds_since

Stacks = FrameStack | tuple[FrameStack, ...]


class Reader(Protocol):
    """What an engine and an ensemble have in common: encoded images in, predictions out."""

    @property
    def processor(self) -> ImageProcessor: ...
    @property
    def processors(self) -> tuple[ImageProcessor, ...]: ...
    @property
    def provenance(self) -> dict[str, str]: ...
    def read(
        self, items: Sequence[Sequence[bytes]], *, names: Sequence[str] | None = None, explain: bool = False
    ) -> list[Prediction]: ...
    def prepare(self, frames: Sequence[bytes], *, name: str) -> Any: ...
    def read_prepared(
        self,
        items: Sequence[Any],
        *,
        explain: bool = False,
        timings: dict[str, float] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]: ...
    def embed(self, items: Sequence[Any]) -> list[Embedding]: ...


class Ensemble:
    """Recognizers with their own decode settings, and how what they read becomes one answer.

    decode: what happens after the vote (its floor, the priors of lengths, correction, n_best, calibration, abstention), and
    for an average also the search. What members have of these in their own settings is done before they vote.
    """

    def __init__(
        self,
        members: Mapping[str, Engine],
        settings: EnsembleSettings | None = None,
        decode: DecodeSettings | None = None,
        *,
        provenance: dict[str, str] | None = None,
        files: Path | None = None,
    ) -> None:
        """files: the folder of the files that correction names, such as a bundle's.

        Raises ValueError if the settings do not fit the members, or if these cannot be averaged.
        """
        self.members = dict(members)
        self.settings = settings or EnsembleSettings()
        self.settings.check(list(self.members))
        # Members have their own floors for what they see; of what they say nothing need be ignored.
        self.decode = decode or DecodeSettings(vote_floor=0.0)
        self.provenance = provenance or {}
        self.files = files
        self.processors = tuple(dict.fromkeys(engine.processor for engine in self.members.values()))
        hurried = self.members if self.settings.deadline_ms else ()
        self._threads = {name: ThreadPoolExecutor(1, name) for name in hurried}
        if self.settings.vote == "average":
            self._joint = self._read_as_one(list(self.members))
        else:
            jury = Jury(self.settings, self.decode, self.provenance, files)
            self._corrector = jury.corrector(next(iter(self.members.values())).device)

    @property
    def processor(self) -> ImageProcessor:
        """That of the first member."""
        return self.processors[0]

    def read(
        self, items: Sequence[Sequence[bytes]], *, names: Sequence[str] | None = None, explain: bool = False
    ) -> list[Prediction]:
        """Encoded images in, one prediction an item out, as ``Engine.read``. Raises ImageError, EnsembleError."""
        if not items:
            return []
        started = perf_counter()
        labels = names or [f"item {number}" for number in range(len(items))]
        prepared = [self.prepare(frames, name=label) for frames, label in zip(items, labels, strict=True)]
        return self.read_prepared(prepared, explain=explain, timings={"decode": milliseconds_since(started)})

    def prepare(self, frames: Sequence[bytes], *, name: str) -> tuple[FrameStack, ...]:
        """The encoded frames of one item, ready for each of ``processors``. Raises ImageError naming item and frame."""
        return prepare_frames(frames, self.processors, name=name)

    def read_prepared(
        self,
        items: Sequence[Stacks],
        *,
        explain: bool = False,
        timings: dict[str, float] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Prepared items in, predictions in their order out; a plain stack will do where members share a processor.

        A deadline counts for each batch of items of similar size. explain: an average says what each frame says alone;
        where members vote, their readings stand in ``members`` in any case. Raises EnsembleError.
        """
        stacks = [self._stacks(item) for item in items]
        found: dict[int, Prediction] = {}
        for batch in batches_of_similar_size([stack[0].shape for stack in stacks]):
            chosen = [stacks[number] for number in batch]
            read = self._averaged(chosen, explain) if self.settings.vote == "average" else self._voted(chosen)
            found.update(zip(batch, read, strict=True))
            if progress:
                progress(len(batch))
        predictions = (found[number] for number in range(len(items)))
        return [_with_timings(prediction, timings or {}) for prediction in predictions]

    def embed(self, items: Sequence[Stacks]) -> list[Embedding]:
        """Raises ValueError: there is no one encoder."""
        raise ValueError(no_features(self.members))

    def _stacks(self, item: Stacks) -> tuple[FrameStack, ...]:
        stacks = item if isinstance(item, tuple) else (item,)
        if len(stacks) != len(self.processors):
            raise ValueError(
                f"the members have {len(self.processors)} image processors and the item is ready for {len(stacks)}: "
                "prepare it with the ensemble"
            )
        return stacks

    def _stacks_of(self, engine: Engine, items: Sequence[tuple[FrameStack, ...]]) -> list[FrameStack]:
        place = self.processors.index(engine.processor)
        return [stacks[place] for stacks in items]

    def _voted(self, items: Sequence[tuple[FrameStack, ...]]) -> list[Prediction]:
        started = perf_counter()
        readings = self._readings(items)
        read = milliseconds_since(started)
        predictions = vote_of_members(readings, self.settings, self.decode, self._corrector, self.provenance)
        stages = {"read": read, "vote": milliseconds_since(started) - read}
        return [_with_timings(prediction, stages) for prediction in predictions]

    def _readings(self, items: Sequence[tuple[FrameStack, ...]]) -> dict[str, Reading]:
        """What each member says; with a deadline for any of them, each reads in a thread of its own."""
        started = perf_counter()
        if not self._threads:
            return {name: self._reading(engine, items, perf_counter()) for name, engine in self.members.items()}
        asked = {
            name: self._threads[name].submit(self._reading, engine, items, started)
            for name, engine in self.members.items()
        }
        return {name: self._in_time(asked[name], self.settings.deadline_ms.get(name), started) for name in asked}

    def _reading(self, engine: Engine, items: Sequence[tuple[FrameStack, ...]], started: float) -> Reading:
        try:
            predictions = engine.read_prepared(self._stacks_of(engine, items))
        except Exception as error:  # whatever it is, the others can read without this member
            return Reading(None, milliseconds_since(started), f"failed: {str(error) or type(error).__name__}")
        return Reading(predictions, milliseconds_since(started), "voted")

    def _in_time(self, asked: Future[Reading], deadline_ms: float | None, started: float) -> Reading:
        if deadline_ms is None:
            return asked.result()
        wait([asked], max(deadline_ms / 1e3 - (perf_counter() - started), 0.0))
        if not asked.done():
            asked.cancel()  # what has begun ends by itself, and the member's next batch waits for it
            return Reading(None, None, "late")
        reading = asked.result()
        if reading.predictions is not None and reading.ms is not None and reading.ms > deadline_ms:
            return Reading(None, reading.ms, "late")
        return reading

    def _averaged(self, items: Sequence[tuple[FrameStack, ...]], explain: bool) -> list[Prediction]:
        started = perf_counter()
        names, joint, failed = list(self.members), self._joint, dict[str, Reading]()
        while True:
            try:
                predictions = joint.read_prepared([stack for (stack,) in items], explain=explain)
                break
            except MemberFailed as error:
                name = names.pop(error.member)
                failed[name] = Reading(None, milliseconds_since(started), f"failed: {error}")
                require_quorum(self.settings.quorum, names, failed)
                joint = self._read_as_one(names)
        spent = milliseconds_since(started)
        said = {name: failed.get(name, Reading(predictions, spent, "averaged")) for name in self.members}
        ballots = [
            tuple(ballot_of(name, reading, one, self._weight(name)) for name, reading in said.items())
            for one in predictions
        ]
        return [
            replace(one, members=members, provenance=self.provenance)
            for one, members in zip(predictions, ballots, strict=True)
        ]

    def _read_as_one(self, names: Sequence[str]) -> Engine:
        members = {name: self.members[name] for name in names}
        return as_one(members, self.decode, [self._weight(name) for name in names], files=self.files)

    def _weight(self, name: str) -> float:
        return self.settings.weights.get(name, 1.0)


def as_one(
    members: Mapping[str, Engine],
    decode: DecodeSettings,
    weights: Sequence[float] | None = None,
    *,
    files: Path | None = None,
) -> Engine:
    """An engine that searches once over the mean of what its members say. Raises ValueError if they cannot be averaged."""
    (name, first), *others = members.items()
    for other_name, other in others:
        for what, same in (
            ("codecs", other.codec == first.codec),
            ("image processors", other.processor == first.processor),
            ("precisions", other.precision == first.precision),
            ("devices", other.device == first.device),
        ):
            if not same:
                raise ValueError(
                    f"{name} and {other_name} have different {what}, so they cannot be averaged: let them vote"
                )
    recognizer = average([engine.recognizer for engine in members.values()], weights, list(members))
    return Engine(
        recognizer, first.codec, first.processor, decode, device=first.device, precision=first.precision, files=files
    )


def _with_timings(prediction: Prediction, timings: dict[str, float]) -> Prediction:
    return replace(prediction, timings={**timings, **prediction.timings})
