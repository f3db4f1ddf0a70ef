"""From trained trials to a chosen bundle: measure, select, score once on the held-out splits, write results.json."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Literal

import glyphrun
from glyphrun.adapters import save_adapter
from glyphrun.bundle import save_bundle
from glyphrun.data.batches import load_split
from glyphrun.data.sample import dataset_hash, iterate_samples, read_card
from glyphrun.device import available_cores
from glyphrun.engine import Engine
from glyphrun.evaluation.calibration import answers
from glyphrun.evaluation.cost import count_gflops, count_parameters, measure_batches, measure_latency
from glyphrun.evaluation.evaluate import read_and_score
from glyphrun.evaluation.footprint import memory_mib
from glyphrun.evaluation.importance import importance
from glyphrun.evaluation.pareto import pareto_front
from glyphrun.models.lora import carries_lora, merge_lora
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.subwords import SubwordCodec
from glyphrun.sweeps.confidence import settle_confidence
from glyphrun.sweeps.examples import Judged, save_examples
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.policies import MAXIMIZED, Budget
from glyphrun.sweeps.retention import drop_weights, has_weights, kept_cost
from glyphrun.sweeps.select import Measured, NoCandidate, select
from glyphrun.sweeps.training import cost_of_a_million
from glyphrun.sweeps.trials import TrialRecord, read_outcome, write_json
from glyphrun.text import Codec
from glyphrun.training.checkpoint import load_checkpoint
from glyphrun.training.start import start_recognizer

LATENCY_REPEATS = 30
RATE_BATCH, RATE_REPEATS, RATE_S = 16, 8, 2.0
COSTS = ("parameters", "gflops", "latency_ms", "memory_mib", "items_per_s")
ADAPTER = "adapter"  # beside a trial's checkpoint: what LoRA changed, alone
PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "peft",
    "optuna",
    "editdistance",
    "numpy",
    "pillow",
    "pyarrow",
)


def conclude(
    experiment: Experiment,
    dataset: Path,
    run_dir: Path,
    records: list[TrialRecord],
    *,
    started: datetime,
    seconds: float,
    extended: Sequence[int] = (),
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Choose the winner, score it once on every split but train, and write bundle, examples and results.json.

    seconds: wall time of the sweep; extended: how many trials were added each time. progress is told each step. Returns the
    results. Raises NoCandidate.
    """
    reported = [record for record in records if record.reports]
    trained = [record for record in reported if has_weights(record)]
    if not trained:
        reasons = "; ".join(f"{record.trial.id}: {record.outcome.reason}" for record in records)
        raise NoCandidate(f"no trial has a result: {reasons}")
    texts = labels(dataset)
    charset = read_card(dataset).charset
    engines = [trained_engine(record, charset, texts) for record in trained]
    progress(f"latency of {len(engines)} trials")
    items = _timed_items(dataset, experiment.budget.frames)
    latencies = measure_latency(engines, items, repeats=LATENCY_REPEATS, threads=experiment.resources.cpus or 1)
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
        costs[record.trial.id]["items_per_s"] = _items_per_s(engine, items, experiment.resources.cpus or 1)
    # A loser of before an extension is on the leaderboard, and has no weights to win with.
    costs |= {record.trial.id: cost for record in reported if (cost := kept_cost(record)) and record not in trained}
    measured = [
        Measured(
            record.trial.id,
            record.reports[-1]["scores"]["exact"],
            costs[record.trial.id]["latency_ms"]["p50"],
            record.reports[-1]["scores"]["cer"],
            record.trial.configuration,
        )
        for record in trained
    ]
    objective: Literal["exact", "cer"] = "cer" if experiment.objectives[0] == "cer" else "exact"
    selection = select(measured, experiment.budget.latency_ms, objective)
    values = {record.trial.id: _values(record, costs[record.trial.id], experiment.budget) for record in reported}
    named = experiment.objectives if len(experiment.objectives) > 1 else [objective, "ms"]
    front = pareto_front(
        {trial: [value[name] * (1 if name in MAXIMIZED else -1) for name in named] for trial, value in values.items()}
    )
    winner = next(
        (record, engine) for record, engine in zip(trained, engines, strict=True) if record.trial.id == selection.winner
    )
    trained_texts = {sample.text for sample in iterate_samples(dataset, "train") if sample.text is not None}
    splits, read, judged = {}, {}, {}
    for split in _held_out(dataset):
        progress(f"the winner on {split}")
        arrays = load_split(dataset, split, winner[1].processor)
        predictions, scores = read_and_score(winner[1], arrays, trained_texts=trained_texts)
        splits[split], read[split] = scores.to_json(), answers(arrays.texts, predictions)
        judged[split] = Judged(arrays.sample_ids, read[split].correct)
    decode, confidence = settle_confidence(winner[0].trial.decode, read, experiment.abstain_for_precision)
    provenance = {
        "experiment": experiment.name,
        "experiment_hash": experiment.hash(),
        "trial": selection.winner,
        "dataset": read_card(dataset).name,
        "dataset_hash": dataset_hash(dataset),
        "code_version": glyphrun.__version__,
        "seed": str(winner[0].trial.train.seed),
    }
    # An attempt that ended between the bundle and results.json has left one behind.
    shutil.rmtree(run_dir / "bundle", ignore_errors=True)
    save_bundle(
        run_dir / "bundle",
        name=experiment.name,
        recognizer=_recognizer(winner[0], winner[1].codec),  # as trained; an engine may hold it in lower precision
        codec=winner[1].codec,
        processor=winner[1].processor,
        decode=decode,
        metrics={
            split: {key: scores[key] for key in ("n", "exact", "exact_ci", "cer", "wer")}
            for split, scores in splits.items()
        },
        provenance=provenance,
    )
    progress("examples")
    shown = {split: one for split, one in judged.items() if split != "val"} or judged
    examples = save_examples(dataset, run_dir, shown, experiment.seed)
    rows = [
        {**_leaderboard_row(record, costs, experiment, front), "objectives": values.get(record.trial.id)}
        for record in records
    ]
    results = {
        "schema": 1,
        "run": {
            "name": experiment.name,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "experiment_hash": experiment.hash(),
            "seed": experiment.seed,
            "code_version": glyphrun.__version__,
            "code_hash": code_hash(),
            "extended": list(extended),
            "spent": any(
                record.outcome.status == "stopped" and read_outcome(record.folder) is None for record in records
            ),
            "limits": {"hours": experiment.budget.hours, "steps": experiment.budget.steps},
            "machine": _machine(winner[1].precision),
            "packages": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
            "dataset": {
                "name": read_card(dataset).name,
                "hash": dataset_hash(dataset),
                "counts": read_card(dataset).counts,
            },
        },
        "budget": {"latency_ms": experiment.budget.latency_ms},
        "objectives": list(experiment.objectives),
        "trials": rows,
        "winner": selection.winner,
        "selection": {"rule": selection.rule, "reason": selection.reason},
        "importance": importance(rows, experiment.seed).to_json(),
        "splits": splits,
        "confidence": confidence,
        "examples": examples,
    }
    if experiment.keep_checkpoints is not None:
        ranked = sorted(measured, key=lambda one: (-one.value(objective), one.latency_ms))[
            : experiment.keep_checkpoints
        ]
        drop_weights(trained, costs, {selection.winner, *front, *(one.trial for one in ranked)})
    write_json(run_dir / "results.json", results)
    return results


def code_hash() -> str:
    """sha256 of the library's source, by which two results of one version can be told apart."""
    root = Path(str(files("glyphrun")))
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


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


def labels(dataset: Path) -> list[str]:
    """The labels that set a codec's length: those of train and val."""
    return [sample.text or "" for split in ("train", "val") for sample in iterate_samples(dataset, split)]


def _recognizer(record: TrialRecord, codec: Codec | SubwordCodec) -> Recognizer:
    """As trained, with LoRA merged into its weights."""
    trial = record.trial
    recognizer, _ = start_recognizer(parse_settings(trial.settings), codec, trial.start, trial.train.seed)
    load_checkpoint(record.checkpoint, recognizer)
    if carries_lora(recognizer) and not (record.folder / ADAPTER).exists():
        save_adapter(record.folder / ADAPTER, recognizer, trial.start.lora)
    merge_lora(recognizer)
    return recognizer


def trained_engine(record: TrialRecord, charset: str, texts: Sequence[str]) -> Engine:
    """A trial's recognizer with its last weights, for a data set's charset and the labels of train and val."""
    settings = parse_settings(record.trial.settings)
    codec = codec_for(settings, charset, texts)
    return Engine(_recognizer(record, codec), codec, processor_for(settings), record.trial.decode)


def _timed_items(dataset: Path, frames: int) -> list[tuple[bytes, ...]]:
    """Tracklets of val cut or repeated to the budget's number of frames."""
    chosen = [sample.frames for sample, _ in zip(iterate_samples(dataset, "val"), range(8), strict=False)]
    return [tuple(item[place % len(item)] for place in range(frames)) for item in chosen]


def _held_out(dataset: Path) -> list[str]:
    """The splits with labels but train, in the order in which they are shown."""
    labelled = {sample.split for sample in iterate_samples(dataset) if sample.text is not None}
    return sorted(labelled - {"train"}, key=lambda split: ("val", "test", "unseen", split).index(split))


def _leaderboard_row(
    record: TrialRecord, costs: dict[str, dict[str, Any]], experiment: Experiment, front: set[str]
) -> dict[str, Any]:
    trial = record.trial
    cost = costs.get(trial.id, dict.fromkeys(COSTS))
    last = record.reports[-1] if record.reports else None
    latency = cost["latency_ms"]
    return {
        "id": trial.id,
        "recognizer": trial.recognizer,
        "family": trial.family,
        "changes": trial.sampled,
        "status": record.outcome.status,
        "reason": record.outcome.reason,
        "retried": record.outcome.retried,
        "seed": trial.train.seed,
        "configuration": trial.configuration,
        "step": last["step"] if last else 0,
        "max_steps": trial.train.steps,
        "seconds": last["seconds"] if last else 0.0,
        **cost,
        "val": {key: last["scores"][key] for key in ("n", "exact", "exact_ci", "cer", "wer")} if last else None,
        "curve": [
            {
                "step": report["step"],
                "seconds": report["seconds"],
                "train_loss": report["train_loss"],
                "exact": report["scores"]["exact"],
                "cer": report["scores"]["cer"],
            }
            for report in record.reports
        ],
        "within_budget": latency is not None and latency["p50"] <= experiment.budget.latency_ms,
        "on_front": trial.id in front,
    }


def _machine(precision: str) -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "precision": precision,
    }
