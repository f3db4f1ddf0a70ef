"""Points of a decode sweep read out of encodings: what each reads, what that scores and what it takes.

Beams of one family differ in width alone. The widest is searched first and what its recognizer said is kept: the others
are read out of that where it is exact, and searched where it is not (``decoding.replay``). What is read out of a record
takes less time than a search, and recording takes more. So every TIMED-th batch is searched by every width anew, and these
give the time of all: such a row tells on how many items it was measured (``timed_items``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from glyphrun.bundle import load_engine
from glyphrun.decoding.replay import Record
from glyphrun.decoding.vote import VoteRules, vote
from glyphrun.encoded import Encoded
from glyphrun.engine import Engine
from glyphrun.ensemble import as_one
from glyphrun.evaluation.evaluate import score
from glyphrun.evaluation.metrics import Unit, count_errors
from glyphrun.graphemes import graphemes
from glyphrun.models.average import joined
from glyphrun.models.recognizer import Emitting, Ranking
from glyphrun.prediction import Prediction
from glyphrun.sweeps.encodings import Encoding
from glyphrun.sweeps.points import DecodePoint

TIMED = 4
SCORES = ("n", "exact", "exact_ci", "cer", "cer_ci", "wer", "wer_ci")


@dataclass
class Voice:
    """An engine that reads encodings, one or, as an average, those of several members. records: of each batch."""

    engine: Engine
    encodings: Sequence[Encoding]
    records: list[Record] = field(default_factory=list)

    def batch(self, place: int) -> tuple[list[int], Encoded]:
        """The numbers of a batch's items, and the batch as the engine decodes it."""
        parts = [encoding.batches[place].load(self.engine.device) for encoding in self.encodings]
        numbers, first = parts[0]
        if len(parts) == 1:
            return numbers, first
        return numbers, replace(first, memory=joined([encoded.memory for _, encoded in parts]))

    @property
    def batches(self) -> int:
        return len(self.encodings[0].batches)


@dataclass(frozen=True)
class Heard:
    """What a voice says of all items, and what that takes.

    seconds: of decoding and of encoding the share of the frames that it read. timed: on how many items decoding was timed;
    anew: how many searches could not be read out of a wider one.
    """

    predictions: list[Prediction]
    seconds: float
    frames_read: float
    timed: int
    anew: int


class PointReader:
    """Reads points in one process, which loads each engine and each encoding once.

    fetch: a reader's encoding; unit: what CER counts.
    """

    def __init__(
        self,
        readers: Mapping[str, Path],
        fetch: Callable[[str], Encoding],
        truths: Sequence[str],
        unit: Unit = "characters",
    ) -> None:
        self._readers, self._fetch, self._truths, self._unit = readers, fetch, truths, unit
        self._engines: dict[str, Engine] = {}
        self._encodings: dict[str, Encoding] = {}

    def rows(self, family: Sequence[DecodePoint]) -> Iterator[dict[str, Any]]:
        """The row of each point: scores, times and what was read; family: points alike but for their widths, widest first."""
        records: list[list[Record]] = []
        for point in family:
            voices = self._voices(point)
            if len(family) > 1:
                records = records or [_records_of(voice) for voice in voices]
                for voice, kept in zip(voices, records, strict=True):
                    voice.records = kept
            yield self._row(point, [self._heard(voice, point) for voice in voices])

    def _voices(self, point: DecodePoint) -> list[Voice]:
        engines = {name: self._engine(name) for name in point.members}
        encodings = [self._encoding(name) for name in point.members]
        if point.ensemble_vote == "average":
            return [Voice(as_one(engines, point.decode), encodings)]
        ways = point.ways.items()
        return [
            Voice(engines[name].with_settings(way), [encoding])
            for (name, way), encoding in zip(ways, encodings, strict=True)
        ]

    def _heard(self, voice: Voice, point: DecodePoint) -> Heard:
        found: dict[int, Prediction] = {}
        spent, timed = 0.0, 0
        before = sum(record.anew for record in voice.records)
        sampled = range(min(TIMED // 2, voice.batches - 1), voice.batches, TIMED) if voice.records else ()
        for place in range(voice.batches):
            numbers, encoded = voice.batch(place)
            if voice.records and place not in sampled:
                predictions = voice.engine.decode(encoded, record=voice.records[place])
            else:
                started = perf_counter()
                predictions = voice.engine.decode(encoded)
                spent += perf_counter() - started
                timed += len(numbers)
            found.update(zip(numbers, predictions, strict=True))
        predictions = [found[number] for number in range(len(self._truths))]
        share = _share_read(predictions, voice)
        encoding = share * sum(encoding.seconds for encoding in voice.encodings)
        anew = sum(record.anew for record in voice.records) - before
        return Heard(predictions, spent * len(predictions) / timed + encoding, share, timed, anew)

    def _row(self, point: DecodePoint, heard: Sequence[Heard]) -> dict[str, Any]:
        started = perf_counter()
        items = [_together(votes, point) for votes in zip(*(one.predictions for one in heard), strict=True)]
        seconds = sum(one.seconds for one in heard) + perf_counter() - started
        texts = [text for text, _ in items]
        scores = score(self._truths, texts, seconds, unit=self._unit).to_json()
        errors = count_errors(list(self._truths), texts, unit=self._unit)
        return {
            "name": point.name,
            "point": point.model_dump(mode="json"),
            **{key: scores[key] for key in SCORES},
            "ms": seconds * 1e3 / len(texts),
            "items_per_s": len(texts) / seconds,
            "images_per_s": float(np.mean([self._encoding(name).frames for name in point.members])) / seconds,
            "frames_read": float(np.mean([one.frames_read for one in heard])),
            "timed_items": min(one.timed for one in heard),
            "searched_anew": sum(one.anew for one in heard),
            "readings": [[text, round(confidence, 6)] for text, confidence in items],
            "errors": {
                "wrong": (~errors.exact).astype(int).tolist(),
                "edits": errors.character_edits.tolist(),
                "characters": errors.characters.tolist(),
            },
        }

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = load_engine(self._readers[name])
        return self._engines[name]

    def _encoding(self, name: str) -> Encoding:
        if name not in self._encodings:
            self._encodings[name] = self._fetch(name)
        return self._encodings[name]


def _records_of(voice: Voice) -> list[Record]:
    """A record for each batch; none where a search asks its recognizer once and a wide beam can spare nothing."""
    asks_once = isinstance(voice.engine.recognizer, Ranking | Emitting)
    return [] if asks_once else [Record() for _ in range(voice.batches)]


def _share_read(predictions: Sequence[Prediction], voice: Voice) -> float:
    """Of the frames, how many a reader would have had to encode, were these its only settings."""
    settings = voice.engine.settings
    if not (settings.window_frames or settings.early_exit):
        return 1.0
    read = (
        {frame for ballot in item.votes for frame in range(ballot.frame, ballot.frame + ballot.frames)}
        for item in predictions
    )
    return sum(map(len, read)) / voice.encodings[0].frames


def _together(votes: Sequence[Prediction], point: DecodePoint) -> tuple[str, float]:
    """What the members say of one item, and the probability of that."""
    if len(votes) == 1:
        return votes[0].text, votes[0].confidence
    assert point.ensemble_vote is not None and point.ensemble_vote != "average"
    rules = VoteRules(point.ensemble_vote, segment=graphemes, silence_counts=True)
    ranked, _ = vote([prediction.n_best for prediction in votes], rules)
    return ranked[0].text, float(np.exp(ranked[0].log_prob))
