"""From what was trained to a chosen bundle: select, score once on the held-out splits, write results.json."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import glyphrun
from glyphrun.data.batches import load_split
from glyphrun.data.sample import dataset_hash, iterate_samples, read_card
from glyphrun.device import available_cores
from glyphrun.evaluation.calibration import answers
from glyphrun.evaluation.evaluate import read_and_score
from glyphrun.evaluation.importance import importance
from glyphrun.sweeps.confidence import settle_confidence
from glyphrun.sweeps.examples import Judged, save_examples
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.joint import provenance_of
from glyphrun.sweeps.retention import drop_weights
from glyphrun.sweeps.select import Selection, select
from glyphrun.sweeps.trained import Trained
from glyphrun.sweeps.trials import TrialRecord, read_outcome, write_json
from glyphrun.sweeps.ways import Ways, verdict
from glyphrun.sweeps.winner import Winner, winning_trial, winning_way

COSTS = ("parameters", "gflops", "latency_ms", "memory_mib", "items_per_s")
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
    trained: Trained,
    ways: Ways | None = None,
    *,
    started: datetime,
    seconds: float,
    extended: Sequence[int] = (),
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Choose the winner, score it once on every split but train, and write bundle, examples and results.json.

    ways: of reading, one of which wins; without any it is a trial. seconds: wall time of the sweep; extended: how many trials
    were added each time. progress is told each step. Returns the results. Raises NoCandidate.
    """
    winner, selection, searched = _winner(experiment, dataset, trained, ways)
    trained_texts = {sample.text for sample in iterate_samples(dataset, "train") if sample.text is not None}
    splits, read, judged = {}, {}, {}
    for split in _held_out(dataset):
        progress(f"the winner on {split}")
        arrays = [load_split(dataset, split, processor) for processor in winner.reader.processors]
        predictions, scores = read_and_score(winner.reader, arrays, trained_texts=trained_texts)
        splits[split], read[split] = scores.to_json(), answers(arrays[0].texts, predictions)
        judged[split] = Judged(arrays[0].sample_ids, read[split].correct)
    decode, confidence = settle_confidence(winner.decode, read, experiment.abstain_for_precision)
    metrics = {
        split: {key: scores[key] for key in ("n", "exact", "exact_ci", "cer", "wer")}
        for split, scores in splits.items()
    }
    # An attempt that ended between the bundle and results.json has left one behind.
    shutil.rmtree(run_dir / "bundle", ignore_errors=True)
    origin = provenance_of(experiment, dataset, [trained.record(trial) for trial in winner.trials])
    winner.save(run_dir / "bundle", experiment.name, decode, metrics, origin)
    progress("examples")
    shown = {split: one for split, one in judged.items() if split != "val"} or judged
    examples = save_examples(dataset, run_dir, shown, experiment.seed)
    rows = [_leaderboard_row(record, trained, experiment) for record in trained.records]
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
                record.outcome.status == "stopped" and read_outcome(record.folder) is None for record in trained.records
            ),
            "limits": {"hours": experiment.budget.hours, "steps": experiment.budget.steps},
            "machine": _machine(winner.precision),
            "packages": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
            "dataset": {
                "name": read_card(dataset).name,
                "hash": dataset_hash(dataset),
                "counts": read_card(dataset).counts,
            },
        },
        "budget": experiment.budget.model_dump(include={"latency_ms", "memory_mib", "cost_per_million"}),
        "objectives": list(experiment.objectives),
        "trials": rows,
        "winner": winner.trials[0],
        "selection": {"rule": selection.rule, "reason": selection.reason},
        "decode_search": searched,
        "importance": importance(rows, experiment.seed).to_json(),
        "splits": splits,
        "confidence": confidence,
        "examples": examples,
    }
    if experiment.keep_checkpoints is not None:
        ranked = sorted(trained.measured(), key=lambda one: (-one.value(experiment.accuracy), one.latency_ms))
        best = (one.name for one in ranked[: experiment.keep_checkpoints])
        keep = {*winner.trials, *trained.front, *best, *(ways.survivors if ways else ())}
        drop_weights(trained.trained, trained.costs, keep)
    write_json(run_dir / "results.json", results)
    return results


def _winner(
    experiment: Experiment, dataset: Path, trained: Trained, ways: Ways | None
) -> tuple[Winner, Selection, dict[str, Any] | None]:
    """Who wins, why, and what results.json says of the ways of reading that were tried."""
    if ways is not None:
        way, selection = ways.choose(experiment)
        return winning_way(way, ways), selection, ways.to_json(experiment, way)
    selection = select(trained.measured(), experiment.budget, experiment.accuracy, experiment.pick)
    return winning_trial(trained.record(selection.winner), dataset), selection, None


def code_hash() -> str:
    """sha256 of the library's source, by which two results of one version can be told apart."""
    root = Path(str(files("glyphrun")))
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _held_out(dataset: Path) -> list[str]:
    """The splits with labels but train, in the order in which they are shown."""
    labelled = {sample.split for sample in iterate_samples(dataset) if sample.text is not None}
    return sorted(labelled - {"train"}, key=lambda split: ("val", "test", "unseen", split).index(split))


def _leaderboard_row(record: TrialRecord, trained: Trained, experiment: Experiment) -> dict[str, Any]:
    trial = record.trial
    cost = trained.costs.get(trial.id, dict.fromkeys(COSTS))
    last = record.reports[-1] if record.reports else None
    measured = trained.measured_of(record)
    return {
        "id": trial.id,
        "recognizer": trial.recognizer,
        "family": trial.family,
        "changes": trial.sampled,
        "status": record.outcome.status,
        "reason": record.outcome.reason,
        "retried": record.outcome.retried,
        "parents": record.parents,
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
        **(verdict(measured, experiment.budget) if measured else {"within_budget": False, "over_budget": []}),
        "on_front": trial.id in trained.front,
        "objectives": trained.values.get(trial.id),
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
