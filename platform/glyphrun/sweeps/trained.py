"""What a sweep has trained: each trial's recognizer, and what reading with it takes, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from glyphrun.adapters import save_adapter
from glyphrun.data.sample import iterate_samples, read_card
from glyphrun.engine import Engine
from glyphrun.evaluation.cost import count_gflops, count_parameters, measure_batches, measure_latency
from glyphrun.evaluation.footprint import memory_mib
from glyphrun.evaluation.pareto import pareto_front
from glyphrun.evaluation.timed_items import timed_items
from glyphrun.models.lora import carries_lora, merge_lora
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.subwords import SubwordCodec
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.policies import MAXIMIZED, Budget
from glyphrun.sweeps.retention import has_weights, kept_cost
from glyphrun.sweeps.select import Measured, NoCandidate
from glyphrun.sweeps.training import cost_of_a_million
from glyphrun.sweeps.trials import TrialRecord
from glyphrun.text import Codec
from glyphrun.training.checkpoint import load_checkpoint
from glyphrun.training.start import start_recognizer

TIMED_ITEMS = 8
LATENCY_REPEATS = 30
RATE_BATCH, RATE_REPEATS, RATE_S = 16, 8, 2.0
ADAPTER = "adapter"  # beside a trial's checkpoint: what LoRA changed, alone


@dataclass(frozen=True)
class Trained:
    """All trials, those with weights among them, what each costs by its id, and the ids on the Pareto front.

    values: the objectives of each trial that reported.
    """

    records: list[TrialRecord]
    trained: list[TrialRecord]
    costs: dict[str, dict[str, Any]]
    values: dict[str, dict[str, float]]
    front: set[str]

    def record(self, trial: str) -> TrialRecord:
        """That of a trial with weights."""
        return next(record for record in self.trained if record.trial.id == trial)

    def measured(self) -> list[Measured]:
        """What a winner is chosen by, of each trial with weights."""
        return [measured for record in self.trained if (measured := self.measured_of(record))]

    def measured_of(self, record: TrialRecord) -> Measured | None:
        """The same of a trial; None if it has no result."""
        values = self.values.get(record.trial.id)
        if values is None:
            return None
        return Measured(
            record.trial.id,
            values["exact"],
            values["ms"],
            values["cer"],
            record.trial.configuration,
            values["memory"],
            values.get("cost"),
        )


def measure_trials(
    experiment: Experiment, dataset: Path, records: list[TrialRecord], progress: Callable[[str], None]
) -> Trained:
    """Measure latency, memory and throughput of all trials that have weights, side by side. Raises NoCandidate if none has."""
    reported = [record for record in records if record.reports]
    trained = [record for record in reported if has_weights(record)]
    if not trained:
        reasons = "; ".join(f"{record.trial.id}: {record.outcome.reason}" for record in records)
        raise NoCandidate(f"no trial has a result: {reasons}")
    texts, charset = labels(dataset), read_card(dataset).charset
    engines = [trained_engine(record, charset, texts) for record in trained]
    threads = experiment.resources.cpus or 1
    progress(f"latency of {len(engines)} trials")
    items = timed_items(dataset, "val", TIMED_ITEMS, experiment.budget.frames)
    latencies = measure_latency(engines, items, repeats=LATENCY_REPEATS, threads=threads)
    costs: dict[str, dict[str, Any]] = {
        record.trial.id: {
            "parameters": count_parameters(engine),
            "gflops": count_gflops(engine, experiment.budget.frames),
            "latency_ms": asdict(latency),
        }
        for record, engine, latency in zip(trained, engines, latencies, strict=True)
    }
    progress(f"memory and throughput of {len(engines)} trials")
    for record, engine in zip(trained, engines, strict=True):
        costs[record.trial.id]["memory_mib"] = memory_mib(engine, items[0])
        costs[record.trial.id]["items_per_s"] = _items_per_s(engine, items, threads)
    # A loser of before an extension is on the leaderboard, and has no weights to win with.
    costs |= {record.trial.id: cost for record in reported if (cost := kept_cost(record)) and record not in trained}
    values = {record.trial.id: _values(record, costs[record.trial.id], experiment.budget) for record in reported}
    named = experiment.objectives if len(experiment.objectives) > 1 else [experiment.accuracy, "ms"]
    front = pareto_front(
        {trial: [value[name] * (1 if name in MAXIMIZED else -1) for name in named] for trial, value in values.items()}
    )
    return Trained(records, trained, costs, values, front)


def trained_engine(record: TrialRecord, charset: str, texts: Sequence[str]) -> Engine:
    """A trial's recognizer with its last weights, for a data set's charset and the labels of train and val."""
    settings = parse_settings(record.trial.settings)
    codec = codec_for(settings, charset, texts)
    return Engine(trained_recognizer(record, codec), codec, processor_for(settings), record.trial.decode)


def trained_recognizer(record: TrialRecord, codec: Codec | SubwordCodec) -> Recognizer:
    """As trained, with LoRA merged into its weights; what LoRA changed is saved beside them."""
    trial = record.trial
    recognizer, _ = start_recognizer(parse_settings(trial.settings), codec, trial.start, trial.train.seed)
    load_checkpoint(record.checkpoint, recognizer)
    if carries_lora(recognizer) and not (record.folder / ADAPTER).exists():
        save_adapter(record.folder / ADAPTER, recognizer, trial.start.lora)
    merge_lora(recognizer)
    return recognizer


def labels(dataset: Path) -> list[str]:
    """The labels that set a codec's length: those of train and val."""
    return [sample.text or "" for split in ("train", "val") for sample in iterate_samples(dataset, split)]


def _values(record: TrialRecord, cost: dict[str, Any], budget: Budget) -> dict[str, float]:
    """The objectives of a trial: on val at its last report, and what reading costs."""
    scores, ms = record.reports[-1]["scores"], cost["latency_ms"]["p50"]
    values = {"exact": scores["exact"], "cer": scores["cer"], "ms": ms, "memory": cost["memory_mib"]}
    if budget.price_per_hour is not None:
        values["cost"] = cost_of_a_million(ms, budget.price_per_hour)
    return values


def _items_per_s(engine: Engine, items: Sequence[Sequence[bytes]], threads: int) -> float:
    """Of batches, from encoded frames to text."""
    times = measure_batches(engine, items, batch=RATE_BATCH, repeats=RATE_REPEATS, seconds=RATE_S, threads=threads)
    return RATE_BATCH * 1e3 / median(times)
