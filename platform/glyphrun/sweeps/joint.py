"""From trained trials to ways of reading: the best survive, and alone and together they read val in every way declared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import glyphrun
from glyphrun.bundle import save_bundle
from glyphrun.data.sample import dataset_hash, read_card
from glyphrun.device import default_device, device_name
from glyphrun.evaluation.timed_items import timed_items
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.sweeps.decode import decode_sweep
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.point_costs import measure_points
from glyphrun.sweeps.points import DecodePoint
from glyphrun.sweeps.readers import own_of
from glyphrun.sweeps.trained import TIMED_ITEMS, Trained, labels, trained_recognizer
from glyphrun.sweeps.trials import TrialRecord, write_json
from glyphrun.sweeps.ways import Way, Ways

DECODE = "decode"  # in a run's folder: the decode sweep, the bundles that it reads with and what each point costs

Told = Callable[[int, str], None]


def search_ways(experiment: Experiment, dataset: Path, run_dir: Path, trained: Trained, told: Told) -> Ways:
    """Read val in every way that the experiment's decode search declares, each scored and its cost measured.

    What ``run_dir/decode`` holds is not read or measured again, so a search that was killed goes on and one of an extended
    sweep reads only what is new. told: how many points are read, and a note. Needs a Ray that is running.
    """
    assert experiment.decode_search is not None
    folder = run_dir / DECODE
    folder.mkdir(exist_ok=True)
    survivors = _settled(experiment, trained, folder / "survivors.json")
    told(0, f"{len(survivors)} survivors")
    records = [trained.record(trial) for trial in survivors]
    readers = _save_readers(records, dataset, folder / "readers", experiment)
    points, left_out = experiment.decode_search.points(survivors, own_of(readers))
    rows = decode_sweep(
        points,
        readers,
        dataset,
        "val",
        folder,
        seed=experiment.seed,
        on_row=lambda done, of: told(done, f"{done} of {of} ways of reading"),
    )
    read = [DecodePoint.model_validate(row["point"]) for row in rows]
    costs = measure_points(
        read,
        readers,
        timed_items(dataset, "val", TIMED_ITEMS, experiment.budget.frames),
        folder / "costs",
        threads=experiment.resources.cpus or 1,
        where=f"{device_name(default_device())}/{dataset_hash(dataset)}/{experiment.budget.frames}",
        told=lambda done: told(len(read), f"latency and memory, {done} of {len(read)}"),
    )
    ways = [Way(point, row, cost) for point, row, cost in zip(read, rows, costs, strict=True)]
    return Ways(survivors, readers, ways, left_out)


def surviving(experiment: Experiment, trained: Trained) -> list[str]:
    """The ids of the best trials, the best first: those that meet the budget, of several objectives those on the front, and
    then by accuracy; of equals those with fewer parameters.
    """
    assert experiment.decode_search is not None
    measured = {one.name: one for one in trained.measured()}

    def rank(trial: str) -> tuple[bool, bool, float, int, str]:
        one = measured[trial]
        beaten = len(experiment.objectives) > 1 and trial not in trained.front
        parameters = trained.costs[trial]["parameters"]
        return bool(one.over(experiment.budget)), beaten, -one.value(experiment.accuracy), parameters, trial

    return sorted(measured, key=rank)[: experiment.decode_search.survivors]


def _settled(experiment: Experiment, trained: Trained, path: Path) -> list[str]:
    """The survivors in the order of trials, chosen once for what the trials have become.

    Costs differ from one attempt to the next, and what was read of a survivor must not be lost to that.
    """
    state = {record.trial.id: record.reports[-1]["step"] for record in trained.trained}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["of"] == state:
            return list(known["survivors"])
    survivors = sorted(surviving(experiment, trained))
    write_json(path, {"of": state, "survivors": survivors})
    return survivors


def provenance_of(experiment: Experiment, dataset: Path, records: Sequence[TrialRecord]) -> dict[str, str]:
    """Where the weights of some trials come from."""
    return {
        "experiment": experiment.name,
        "experiment_hash": experiment.hash(),
        "trial": " + ".join(record.trial.id for record in records),
        "dataset": read_card(dataset).name,
        "dataset_hash": dataset_hash(dataset),
        "code_version": glyphrun.__version__,
        "seed": " + ".join(str(record.trial.train.seed) for record in records),
    }


def _save_readers(
    records: Sequence[TrialRecord], dataset: Path, folder: Path, experiment: Experiment
) -> dict[str, Path]:
    """A bundle of each survivor, and of no other trial; written anew, since a trial may have gone on since."""
    shutil.rmtree(folder, ignore_errors=True)
    texts, charset = labels(dataset), read_card(dataset).charset
    readers = {}
    for record in records:
        trial = record.trial
        settings = parse_settings(trial.settings)
        codec = codec_for(settings, charset, texts)
        readers[trial.id] = folder / trial.id
        save_bundle(
            readers[trial.id],
            name=trial.id,
            recognizer=trained_recognizer(record, codec),
            codec=codec,
            processor=processor_for(settings),
            decode=trial.decode,
            metrics={},
            provenance=provenance_of(experiment, dataset, [record]),
        )
    return readers
