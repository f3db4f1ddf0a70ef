"""Population based training (arXiv 1711.09846): generations of trials, of which the worst go on as variants of the best.

All trials meet every so many steps. What a generation decides follows from its scores and the seed, is written down before
it is carried out, and is carried out again if that was broken off, so a resumed sweep goes on as an unbroken one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment, perturbed
from glyphrun.sweeps.plan import Trial, set_path
from glyphrun.sweeps.policies import MAXIMIZED, Pbt
from glyphrun.sweeps.space import AnyDimension, Choice, Grid, Integer, Uniform, rounded
from glyphrun.sweeps.trials import (
    Change,
    as_changed,
    checkpoint_folder,
    read_change,
    trial_folder,
    write_change,
    write_json,
)
from glyphrun.training.checkpoint import copy_checkpoint
from glyphrun.training.fit import TrainSettings

FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Exploit:
    """A trial that goes on from the checkpoint of another, with what it changes in the other's settings."""

    trial: str
    donor: str
    train: dict[str, Any]
    sampled: dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """What was decided at a step: scores by trial, larger is better, and who goes on as a variant of whom."""

    step: int
    scores: dict[str, float]
    exploits: list[Exploit]
    applied: bool = False


class Population:
    """The trials of a run that is trained in generations, and what was decided of them so far."""

    def __init__(self, experiment: Experiment, run_dir: Path, trials: Sequence[Trial]) -> None:
        assert isinstance(experiment.scheduler, Pbt)
        self.experiment, self.policy, self.run_dir = experiment, experiment.scheduler, run_dir
        self.trials = {trial.id: trial for trial in trials}
        if len({_kind(trial) for trial in trials}) == len(trials):
            raise ExperimentError(
                "pbt lets trials go on from each other's weights, and no two trials have the same recognizer, start and "
                "train.steps: raise trials, or search train.learning_rate and the like alone"
            )
        self.generations = read_generations(run_dir)
        if self.generations and not self.generations[-1].applied:
            self._apply(self.generations[-1])

    def meets(self, trial: str, step: int) -> bool:
        """Whether a trial waits for the others at a step: not at its last, nor where that was decided before."""
        if step % self.policy.every_steps or step >= self.trials[trial].train.steps:
            return False
        return not any(one.step == step and trial in one.scores for one in self.generations)

    def decide(self, step: int, scores: Mapping[str, float]) -> Generation:
        """Decide and carry out a generation; scores: the first objective of those that have met."""
        sign = 1 if self.experiment.objectives[0] in MAXIMIZED else -1
        better = {trial: sign * score for trial, score in sorted(scores.items())}
        rng = np.random.default_rng([self.experiment.seed, step, len(better)])
        groups: dict[str, list[str]] = {}
        for trial in better:
            groups.setdefault(_kind(self.trials[trial]), []).append(trial)
        exploits = []
        for group in groups.values():
            ranked = sorted(group, key=lambda trial: (better[trial], trial))
            count = min(ceil(len(ranked) * self.policy.quantile), len(ranked) // 2)
            for loser in ranked[:count]:
                donor = str(rng.choice(ranked[-count:]))
                if better[donor] > better[loser]:
                    exploits.append(self._variant(loser, donor, rng))
        generation = Generation(step, better, exploits)
        self.generations.append(generation)
        self._write()
        self._apply(generation)
        return generation

    def _variant(self, loser: str, donor: str, rng: np.random.Generator) -> Exploit:
        source = as_changed(self.trials[donor], trial_folder(self.run_dir, self.trials[donor]))
        dimensions = perturbed(self.experiment.candidates[source.candidate])
        train = source.train.model_dump(mode="json")
        sampled = {path: value for path, value in source.sampled.items() if path.startswith("train.")}
        for path, dimension in dimensions.items():
            if path in source.sampled:
                sampled[path] = vary(dimension, source.sampled[path], self.policy.resample, rng)
                train = set_path(train, path.split(".")[1:], sampled[path])
        train["seed"] = self.trials[loser].train.seed
        return Exploit(loser, donor, TrainSettings.model_validate(train).model_dump(mode="json"), sampled)

    def _apply(self, generation: Generation) -> None:
        """No donor is anybody's variant, and none goes on before all is done, so it can be done twice."""
        for exploit in generation.exploits:
            folder = trial_folder(self.run_dir, self.trials[exploit.trial])
            donor = trial_folder(self.run_dir, self.trials[exploit.donor])
            copy_checkpoint(checkpoint_folder(donor), checkpoint_folder(folder))
            before = read_change(folder) or Change({})
            parents = [parent for parent in before.parents if parent["step"] < generation.step]
            parents.append({"step": generation.step, "trial": exploit.donor})
            write_change(folder, Change(exploit.train, exploit.sampled, before.retried, parents))
        place = self.generations.index(generation)
        self.generations[place] = Generation(generation.step, generation.scores, generation.exploits, applied=True)
        self._write()

    def _write(self) -> None:
        write_json(self.run_dir / "population.json", [asdict(generation) for generation in self.generations])


def read_generations(run_dir: Path) -> list[Generation]:
    """What was decided in a run, oldest first."""
    path = run_dir / "population.json"
    if not path.exists():
        return []
    told = json.loads(path.read_text(encoding="utf-8"))
    return [Generation(**{**one, "exploits": [Exploit(**exploit) for exploit in one["exploits"]]}) for one in told]


def vary(dimension: AnyDimension, value: Any, resample: float, rng: np.random.Generator) -> Any:
    """A value drawn anew, or beside the one that is there: a number times 0.8 or 1.2, a neighbour among choices."""
    if rng.random() < resample:
        return dimension.sample(float(rng.random()))
    if isinstance(dimension, Choice | Grid):
        place = dimension.values().index(value) + int(rng.choice([-1, 1]))
        return dimension.values()[min(max(place, 0), len(dimension.values()) - 1)]
    factor = float(rng.choice(FACTORS))
    if isinstance(dimension, Integer):
        low, high = dimension.integer
        return min(max(round(value * factor), low), high)
    ends = dimension.uniform if isinstance(dimension, Uniform) else dimension.log_uniform
    return rounded(value * factor, *ends)


def _kind(trial: Trial) -> str:
    """Trials of one kind can go on from each other's weights, and end at the same step."""
    return json.dumps([trial.settings, trial.start.model_dump(mode="json"), trial.train.steps], sort_keys=True)
