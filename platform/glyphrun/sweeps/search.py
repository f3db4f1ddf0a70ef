"""What a learning searcher proposes next, from all that is known: Optuna asked afresh each time.

Nothing of Optuna is kept between two questions, so a resumed or extended sweep is proposed what an unbroken one would
have been, given the same results.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import Trial, looker
from glyphrun.sweeps.policies import MAXIMIZED, Optuna, Tpe
from glyphrun.sweeps.space import Choice, Dimension, Grid, Integer, LogUniform, Uniform, applies, ordered, rounded

CANDIDATE = "candidate"
GENERATION = "NSGAIISampler:generation"  # where Optuna looks for it


@dataclass(frozen=True)
class Known:
    """A trial with its objectives' values in the experiment's order; without values it runs, or has failed."""

    trial: Trial
    values: tuple[float, ...] | None = None
    failed: bool = False


def propose(
    experiment: Experiment, number: int, known: Sequence[Known], attempt: int = 0
) -> tuple[int, dict[str, Any]]:
    """The candidate's place and what is sampled for configuration ``number``; another attempt proposes something else."""
    searcher = experiment.searcher
    assert isinstance(searcher, Tpe | Optuna)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    genetic = isinstance(searcher, Optuna) and searcher.sampler == "nsga2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["maximize" if name in MAXIMIZED else "minimize" for name in experiment.objectives],
            sampler=_sampler(experiment, number, attempt),
        )
        study.add_trials(_frozen(experiment, known, genetic))
        if genetic:
            return _proposed(experiment, study.ask(_genome(experiment)).params)
        return _asked(experiment, study.ask())


def _sampler(experiment: Experiment, number: int, attempt: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([experiment.seed, number, attempt]).generate_state(1)[0])
    searcher = experiment.searcher
    if isinstance(searcher, Optuna) and searcher.sampler == "nsga2":
        return NSGAIISampler(population_size=searcher.population, seed=seed)
    # A Latin hypercube has come first, so it need not draw at random itself unless all of that has failed.
    return TPESampler(n_startup_trials=1, constant_liar=True, seed=seed)


def _asked(experiment: Experiment, asked: optuna.Trial) -> tuple[int, dict[str, Any]]:
    """Ask for the candidate, and then for what applies to it."""
    place = _suggested(asked, CANDIDATE, _candidates(experiment))
    candidate = experiment.candidates[place]
    look = looker(experiment, candidate)
    sampled: dict[str, Any] = {}
    for path in ordered(candidate.space):
        dimension = candidate.space[path]
        if applies(path, dimension, look, sampled):
            name = _name(place, path)
            sampled[path] = _value(dimension, _suggested(asked, name, _distribution(dimension)))
    return place, sampled


def _suggested(asked: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return asked.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return asked.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return asked.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _proposed(experiment: Experiment, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What a genome says; genes of other candidates and of dimensions that do not apply are silent."""
    place = int(params[CANDIDATE])
    candidate = experiment.candidates[place]
    look = looker(experiment, candidate)
    sampled: dict[str, Any] = {}
    for path in ordered(candidate.space):
        if applies(path, candidate.space[path], look, sampled):
            sampled[path] = _value(candidate.space[path], params[_name(place, path)])
    return place, sampled


def _frozen(experiment: Experiment, known: Sequence[Known], genetic: bool) -> list[FrozenTrial]:
    """What is known as Optuna's own trials, a generation of NSGA-II as many as have values, one after another."""
    frozen, complete = [], 0
    for one in sorted(known, key=lambda one: one.trial.number):
        params, distributions = _coded(experiment, one.trial)
        attributes: dict[str, Any] = {}
        if genetic:
            # Silent genes are not kept; they are drawn again, the same each time.
            rng = np.random.default_rng([experiment.seed, one.trial.configuration])
            genome = _genome(experiment)
            params = {
                name: params.get(name, _drawn(distribution, rng.random())) for name, distribution in genome.items()
            }
            distributions = genome
            assert isinstance(experiment.searcher, Optuna)
            attributes = {GENERATION: complete // experiment.searcher.population}
        if one.values is not None:
            state, complete = TrialState.COMPLETE, complete + 1
        else:
            state, attributes = (TrialState.FAIL if one.failed else TrialState.RUNNING), {}
        frozen.append(
            create_trial(
                state=state, values=one.values, params=params, distributions=distributions, system_attrs=attributes
            )
        )
    return frozen


def _coded(experiment: Experiment, trial: Trial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    params: dict[str, Any] = {CANDIDATE: trial.candidate}
    distributions: dict[str, BaseDistribution] = {CANDIDATE: _candidates(experiment)}
    for path, value in trial.sampled.items():
        dimension = experiment.candidates[trial.candidate].space[path]
        name = _name(trial.candidate, path)
        params[name] = dimension.values().index(value) if isinstance(dimension, Choice | Grid) else value
        distributions[name] = _distribution(dimension)
    return params, distributions


def _genome(experiment: Experiment) -> dict[str, BaseDistribution]:
    genes = {
        _name(place, path): _distribution(dimension)
        for place, candidate in enumerate(experiment.candidates)
        for path, dimension in candidate.space.items()
    }
    return {CANDIDATE: _candidates(experiment), **genes}


def _candidates(experiment: Experiment) -> CategoricalDistribution:
    return CategoricalDistribution(range(len(experiment.candidates)))


def _name(place: int, path: str) -> str:
    return f"{place}:{path}"


def _distribution(dimension: Dimension) -> BaseDistribution:
    """Values of a choice by their place, since Optuna takes no lists or mappings."""
    if isinstance(dimension, Choice | Grid):
        return CategoricalDistribution(range(len(dimension.values())))
    if isinstance(dimension, Integer):
        return IntDistribution(*dimension.integer)
    if isinstance(dimension, LogUniform):
        return FloatDistribution(*dimension.log_uniform, log=True)
    assert isinstance(dimension, Uniform)
    return FloatDistribution(*dimension.uniform)


def _value(dimension: Dimension, coded: Any) -> Any:
    if isinstance(dimension, Choice | Grid):
        return dimension.values()[coded]
    if isinstance(dimension, Uniform):
        return rounded(coded, *dimension.uniform)
    return rounded(coded, *dimension.log_uniform) if isinstance(dimension, LogUniform) else int(coded)


def _drawn(distribution: BaseDistribution, share: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = distribution.low + share * (distribution.high - distribution.low)
    return int(value) if isinstance(distribution, IntDistribution) else value
