"""Decode sweeps: one encoding of a data set, read under many settings as Tune trials, without training again.

Each width of a beam is searched by itself: a beam of 7 does not in general hold what one of 3 finds, since a hypothesis
that the narrow one keeps for want of better may be crowded out of the wide one before its end. Only a recognizer that
ranks its whole answer space reads every width as one, and such points are one point (``decode_settings``).

Times are those of batches on this machine: encoding as the driver does it, with all its threads, and decoding in a trial
with one, while other trials may run beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from glyphrun.bundle import MEMBERS, SUMS, load_engine, parse_manifest, read_manifest
from glyphrun.data.batches import load_split
from glyphrun.data.sample import dataset_hash
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Hypothesis, VoteRules, vote
from glyphrun.encoded import Encoded
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import score
from glyphrun.evaluation.metrics import count_errors
from glyphrun.evaluation.significance import paired_bootstrap
from glyphrun.graphemes import graphemes
from glyphrun.prediction import Prediction
from glyphrun.sweeps.decode_settings import DecodePoint, distinct_names, greedy_of, with_files
from glyphrun.sweeps.encodings import StoredBatch, size_in_bytes, store
from glyphrun.sweeps.experiment import ExperimentError
from glyphrun.sweeps.trials import write_json

MEMORY_MIB = 1024
ROWS = "rows"


@dataclass(frozen=True)
class Item:
    """What one setting read of one item."""

    text: str
    confidence: float


def readers_of(sources: Sequence[Path]) -> dict[str, Path]:
    """The bundles that can read, by name: the folder's for a bundle, and for a run its winner and the winner's snapshots.

    Raises ExperimentError for a folder that is neither, and for two of one name.
    """
    if not sources:
        raise ExperimentError(
            "nothing to read with: name at least one bundle or run, and last the folder of a data set"
        )
    readers: dict[str, Path] = {}
    for source in sources:
        for name, folder in _of_source(source).items():
            if name in readers:
                raise ExperimentError(
                    f"{folder} and {readers[name]} are both called {name}: rename a folder, or read them apart"
                )
            if parse_manifest(folder).ensemble is not None:
                raise ExperimentError(
                    f"{folder} is an ensemble: name the bundles in its {MEMBERS}, which vote here in any way"
                )
            readers[name] = folder
    return readers


def own_of(readers: Mapping[str, Path]) -> tuple[dict[str, DecodeSettings], dict[str, str]]:
    """Each reader's own decode settings, files of correction by absolute paths, and the kind of its recognizer.

    So the first member's correction is found by the others. Raises BundleError.
    """
    own, kinds = {}, {}
    for name, folder in readers.items():
        manifest = read_manifest(folder)
        decode = with_files(manifest.decode.model_dump(mode="json"), folder)
        own[name] = DecodeSettings.model_validate(decode)
        kinds[name] = str(manifest.recognizer["kind"])
    return own, kinds


def _of_source(source: Path) -> dict[str, Path]:
    if (source / SUMS).exists():
        return {source.resolve().name: source}
    results = source / "results.json"
    if not results.exists():
        raise ExperimentError(f"{source} is neither a bundle (it has no {SUMS}) nor a finished run (no results.json)")
    winner = json.loads(results.read_text(encoding="utf-8"))["winner"]
    snapshots = sorted((source / "trials" / winner / "snapshots").glob("step-*"))
    return {source.resolve().name: source / "bundle"} | {folder.name: folder for folder in snapshots}


def decode_sweep(
    points: Sequence[DecodePoint],
    readers: Mapping[str, Path],
    dataset: Path,
    split: str,
    out: Path,
    *,
    memory_mib: int = MEMORY_MIB,
    limit: int | None = None,
    seed: int = 0,
    on_row: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Read a split under every point, each reader's frames encoded once, and score each against greedy reading.

    Rows that ``out`` holds are not read again, so a sweep that was killed goes on. Encodings of more than memory_mib lie
    in files below ``out`` while it runs. limit: as many items, drawn by the seed. Needs a Ray that is running. Returns the
    rows, the lowest CER first; on_row is told how many are done, of how many.
    """
    out = out.absolute()
    (out / ROWS).mkdir(parents=True, exist_ok=True)
    weights = {name: hashlib.sha256((folder / SUMS).read_bytes()).hexdigest() for name, folder in readers.items()}
    data = f"{dataset_hash(dataset)}/{split}/{limit}/{seed if limit else 0}"
    wanted = {point.key(weights, data): point for point in (*points, *map(greedy_of, points))}
    new = {key: point for key, point in wanted.items() if not (out / ROWS / f"{key}.json").exists()}
    if on_row:
        on_row(len(wanted) - len(new), len(wanted))
    if new:
        _read_new(new, readers, dataset, split, out, memory_mib, limit, seed, on_row, len(wanted))
    rows = {key: json.loads((out / ROWS / f"{key}.json").read_text(encoding="utf-8")) for key in wanted}
    names = distinct_names(list(wanted.values()))
    compared = [
        {**_compared(rows[key], rows[greedy_of(point).key(weights, data)], seed), "name": name}
        for (key, point), name in zip(wanted.items(), names, strict=True)
    ]
    compared.sort(key=lambda row: (row["cer"] is None, row["cer"], -row["exact"], row["ms"]))
    write_json(out / "decode.json", {"schema": 1, "dataset": str(dataset), "split": split, "rows": compared})
    return compared


def _read_new(
    new: dict[str, DecodePoint],
    readers: Mapping[str, Path],
    dataset: Path,
    split: str,
    out: Path,
    memory_mib: int,
    limit: int | None,
    seed: int,
    on_row: Callable[[int, int], None] | None,
    total: int,
) -> None:
    members = sorted({member for point in new.values() for member in point.members})
    spill = out / "encodings"
    encodings: dict[str, Any] = {}
    held, truths = 0, ()
    try:
        for name in members:
            engine = load_engine(readers[name])
            _check(engine, name, new.values())
            arrays = load_split(dataset, split, engine.processor)
            chosen = _chosen(len(arrays), limit, seed)
            truths = tuple(arrays.texts[item] for item in chosen)
            started = perf_counter()
            batches = engine.encode([arrays.item(item) for item in chosen])
            seconds = perf_counter() - started
            held += size_in_bytes(batches)
            folder = spill / name if held > memory_mib * 2**20 else None
            frames = int(arrays.counts()[chosen].sum())
            encodings[name] = ray.put(Encoding(store(batches, folder), seconds, frames))
        _tune(new, readers, encodings, truths, out, on_row, total)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


@dataclass(frozen=True)
class Encoding:
    """A split as one reader encoded it, how many seconds that took, and how many frames it has."""

    batches: list[StoredBatch]
    seconds: float
    frames: int


def _check(engine: Engine, name: str, points: Iterable[DecodePoint]) -> None:
    """Raises ExperimentError for a point that the reader cannot follow, before anything is encoded."""
    for point in points:
        if name in point.members:
            try:
                engine.with_settings(point.decode.model_copy(update={"correction": None}))
            except ValueError as error:
                raise ExperimentError(f"{point.name} cannot be read: {error}") from None


def _chosen(items: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= items:
        return np.arange(items)
    return np.sort(np.random.default_rng(seed).choice(items, limit, replace=False))


def _tune(
    new: dict[str, DecodePoint],
    readers: Mapping[str, Path],
    encodings: dict[str, Any],
    truths: tuple[str, ...],
    out: Path,
    on_row: Callable[[int, int], None] | None,
    total: int,
) -> None:
    trainable = partial(
        _read_point,
        points={key: point.model_dump(mode="json") for key, point in new.items()},
        readers={name: str(folder.absolute()) for name, folder in readers.items()},
        encodings=encodings,
        truths=truths,
        out=str(out),
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": int(torch.cuda.is_available())}),
        param_space={"key": tune.grid_search(list(new))},
        # Starting a process takes seconds and reading often less, so processes are kept.
        tune_config=tune.TuneConfig(metric="exact", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"attempt-{sum(1 for _ in (out / 'tune').glob('attempt-*')) + 1}",
            storage_path=str(out / "tune"),
            callbacks=[_Count(on_row, total - len(new), total)],
            verbose=0,
        ),
    )
    failed = [str(result.error) for result in _results(tuner) if result.error is not None]
    missing = [key for key in new if not (out / ROWS / f"{key}.json").exists()]
    if missing:
        reason = failed[0].strip().splitlines()[-1] if failed else "its process ended"
        raise ExperimentError(f"{new[missing[0]].name} could not be read: {reason}")


def _results(tuner: tune.Tuner) -> list[tune.Result]:
    grid = tuner.fit()
    return [grid[place] for place in range(len(grid))]


class _Count(tune.Callback):
    """Tells how many rows are done."""

    def __init__(self, on_row: Callable[[int, int], None] | None, done: int, total: int) -> None:
        self.on_row, self.done, self.total = on_row, done, total

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a listener of this process alone; Tune pickles its configuration

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.done += 1
        if self.on_row:
            self.on_row(self.done, self.total)


def _read_point(
    config: dict[str, Any],
    *,
    points: dict[str, dict[str, Any]],
    readers: dict[str, str],
    encodings: dict[str, Any],
    truths: tuple[str, ...],
    out: str,
) -> None:
    """One point in a process that reads others before and after."""
    torch.set_num_threads(1)
    key = config["key"]
    point = DecodePoint.model_validate(points[key])
    row = read_point(point, {name: Path(folder) for name, folder in readers.items()}, encodings, truths)
    write_json(Path(out) / ROWS / f"{key}.json", row)
    tune.report({"exact": row["exact"]})


def read_point(
    point: DecodePoint, readers: Mapping[str, Path], encodings: Mapping[str, Any], truths: Sequence[str]
) -> dict[str, Any]:
    """The row of a point: scores, times and what was read; encodings: references to each reader's ``Encoding``."""
    read: list[list[Prediction]] = []
    seconds, frames = 0.0, 0
    shares: list[float] = []
    for name in point.members:
        encoding: Encoding = ray.get(encodings[name])
        engine = _engine(str(readers[name])).with_settings(point.decode)
        predictions, decoding = _decoded(engine, [batch.load(engine.device) for batch in encoding.batches], len(truths))
        shares.append(_share_read(predictions, point, encoding.frames))
        seconds += decoding + shares[-1] * encoding.seconds
        frames += encoding.frames
        read.append(predictions)
    started = perf_counter()
    items = [_together(votes, point) for votes in zip(*read, strict=True)]
    seconds += perf_counter() - started
    texts = [item.text for item in items]
    scores = score(truths, texts, seconds).to_json()
    kept = ("n", "exact", "exact_ci", "cer", "cer_ci", "wer", "wer_ci")
    errors = count_errors(list(truths), texts)
    return {
        "name": point.name,
        "point": point.model_dump(mode="json"),
        **{key: scores[key] for key in kept},
        "ms": seconds * 1e3 / len(truths),
        "items_per_s": len(truths) / seconds,
        "images_per_s": frames / len(point.members) / seconds,
        "frames_read": float(np.mean(shares)),
        "readings": [[item.text, round(item.confidence, 6)] for item in items],
        "errors": {
            "wrong": (~errors.exact).astype(int).tolist(),
            "edits": errors.character_edits.tolist(),
            "characters": errors.characters.tolist(),
        },
    }


@lru_cache(maxsize=8)
def _engine(folder: str) -> Engine:
    return load_engine(Path(folder))


def _decoded(
    engine: Engine, batches: Sequence[tuple[list[int], Encoded]], items: int
) -> tuple[list[Prediction], float]:
    found: dict[int, Prediction] = {}
    started = perf_counter()
    for numbers, encoded in batches:
        found.update(zip(numbers, engine.decode(encoded), strict=True))
    return [found[number] for number in range(items)], perf_counter() - started


def _share_read(predictions: Sequence[Prediction], point: DecodePoint, frames: int) -> float:
    """Of the frames, how many a reader would have had to encode, were these its only settings."""
    if not (point.decode.window_frames or point.decode.early_exit):
        return 1.0
    read = (
        {frame for ballot in item.votes for frame in range(ballot.frame, ballot.frame + ballot.frames)}
        for item in predictions
    )
    return sum(map(len, read)) / frames


def _together(votes: Sequence[Prediction], point: DecodePoint) -> Item:
    """What the members say of one item."""
    if point.ensemble_vote is None:
        return Item(votes[0].text, votes[0].confidence)
    rules = VoteRules(point.ensemble_vote, segment=graphemes, silence_counts=True)
    lists: list[Sequence[Hypothesis]] = [prediction.n_best for prediction in votes]
    ranked, _ = vote(lists, rules)
    return Item(ranked[0].text, float(np.exp(ranked[0].log_prob)))


def _compared(row: dict[str, Any], greedy: dict[str, Any], seed: int) -> dict[str, Any]:
    """The row with its paired difference from greedy reading, without what was read."""
    own, base = row["errors"], greedy["errors"]
    exact = paired_bootstrap(own["wrong"], base["wrong"], seed=seed)
    cer = (
        paired_bootstrap(own["edits"], base["edits"], own["characters"], seed=seed) if sum(own["characters"]) else None
    )
    shown = {key: value for key, value in row.items() if key not in ("readings", "errors")}
    return {
        **shown,
        "against_greedy": {
            "exact": {"difference": -exact.difference, "ci": [-exact.high, -exact.low], "p": exact.p},
            "cer": cer and {"difference": cer.difference, "ci": [cer.low, cer.high], "p": cer.p},
        },
    }
