"""How a sweep spends its budget: what it optimizes, who proposes trials, who stops them, and what each may use."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from glyphrun.sweeps.errors import KIND

Objective = Literal["exact", "cer", "ms", "memory", "cost"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MAXIMIZED: tuple[Objective, ...] = ("exact",)  # all others are better the smaller they are
MEASURED: tuple[Objective, ...] = ("ms", "memory", "cost")  # of a trained recognizer, and not on the way


class Policy(BaseModel):
    """What all declarations have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Asha(Policy):
    """Asynchronous successive halving (arXiv 1810.05934): of the trials that reach a rung, 1 / reduction goes on.

    A trial is judged by those that were planned before it.
    """

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(400, ge=1)
    reduction: int = Field(3, ge=2)


class HyperBand(Policy):
    """HyperBand (arXiv 1603.06560): brackets of trials that wait for each other at rungs from grace_steps on."""

    kind: Literal["hyperband"]
    grace_steps: int = Field(400, ge=1)
    reduction: int = Field(3, ge=2)


class Median(Policy):
    """Stops a trial whose best is worse than the median of the others' means up to its step (Vizier, KDD 2017).

    It judges every grace_steps, by the trials that were planned before. trials: how many of these must have come so far.
    """

    kind: Literal["median"]
    grace_steps: int = Field(400, ge=1)
    trials: int = Field(3, ge=1)


class Pbt(Policy):
    """Population based training (arXiv 1711.09846) over the ``train.`` dimensions of a space.

    Every ``every_steps`` steps a trial among the worst ``quantile`` goes on from the checkpoint of one among the best, with
    its settings multiplied by 0.8 or 1.2 (a neighbour of a choice), or with probability ``resample`` drawn anew.
    """

    kind: Literal["pbt"]
    every_steps: int = Field(400, ge=1)
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)


class Unscheduled(Policy):
    """Every trial trains to its end."""

    kind: Literal["none"]


class Random(Policy):
    """A seeded Latin hypercube over each candidate's space, candidates in turn."""

    kind: Literal["random"] = "random"


class GridSearch(Policy):
    """Every combination of every candidate's values; the number of trials follows."""

    kind: Literal["grid"]


class Tpe(Policy):
    """Optuna's tree-structured Parzen estimator (NeurIPS 2011) of one objective, candidates among what it chooses.

    startup: trials of a Latin hypercube that come first.
    """

    kind: Literal["tpe"]
    startup: int = Field(8, ge=1)


class Optuna(Policy):
    """Several objectives at once by Optuna: NSGA-II (Deb 2002) or a multi-objective TPE (GECCO 2020).

    startup: trials of a Latin hypercube that come first; population: of a generation of NSGA-II.
    """

    kind: Literal["optuna"]
    sampler: Literal["nsga2", "tpe"] = "tpe"
    startup: int = Field(8, ge=1)
    population: int = Field(16, ge=2)


class Best(Policy):
    """Takes the most accurate of what meets the budget, and of equals the faster."""

    kind: Literal["best"] = "best"


class Cheapest(Policy):
    """Takes what has the least ``by`` of what meets the budget and is hardly less accurate than the best of that.

    tolerance: by how much worse the first objective may be, 0.01 is a point.
    """

    kind: Literal["cheapest"]
    tolerance: float = Field(0.01, ge=0, lt=1)
    by: Literal["ms", "memory", "cost"] = "ms"


def _kind_of(default: str) -> Any:
    def kind(declared: Any) -> str:
        named = declared.get("kind", default) if isinstance(declared, dict) else getattr(declared, "kind", default)
        return KIND + str(named)

    return kind


AnyScheduler = Annotated[
    Annotated[Asha, Tag(":asha")]
    | Annotated[HyperBand, Tag(":hyperband")]
    | Annotated[Median, Tag(":median")]
    | Annotated[Pbt, Tag(":pbt")]
    | Annotated[Unscheduled, Tag(":none")],
    Discriminator(
        _kind_of("asha"),
        custom_error_type="scheduler",
        custom_error_message="the kind of a scheduler is asha, hyperband, median, pbt or none",
    ),
]
AnySearcher = Annotated[
    Annotated[Random, Tag(":random")]
    | Annotated[GridSearch, Tag(":grid")]
    | Annotated[Tpe, Tag(":tpe")]
    | Annotated[Optuna, Tag(":optuna")],
    Discriminator(
        _kind_of("random"),
        custom_error_type="searcher",
        custom_error_message="the kind of a searcher is random, grid, tpe or optuna",
    ),
]
AnyPick = Annotated[
    Annotated[Best, Tag(":best")] | Annotated[Cheapest, Tag(":cheapest")],
    Discriminator(
        _kind_of("best"), custom_error_type="pick", custom_error_message="the kind of a pick is best or cheapest"
    ),
]
DEFAULT_KINDS = {"scheduler": "asha", "searcher": "random", "pick": "best"}


class Resources(Policy):
    """What a trial, or each of the workers that share one, reserves; what is left out is as the experiment says.

    cpus: processor cores, which are its threads; without a word 1. gpus: may be a part of one, which is book-keeping and
    does not divide the card's memory; without a word 1 where the cluster has any. accelerator_type: such as T4.
    """

    cpus: int | None = Field(None, ge=1)
    gpus: float | None = Field(None, ge=0)
    accelerator_type: str | None = None

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus is {gpus:g}: give a part of one, or a whole number of them")
        return gpus

    def over(self, base: Resources) -> Resources:
        """These, and the base's where they say nothing."""
        stated = {name: value for name, value in self.model_dump().items() if value is not None}
        return base.model_copy(update=stated)

    def needed(self, gpus: float) -> dict[str, float]:
        """What to ask Ray for; gpus: of a trial that says nothing of them."""
        asked: dict[str, float] = {"CPU": self.cpus or 1, "GPU": gpus if self.gpus is None else self.gpus}
        if self.accelerator_type is not None:
            asked[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return asked


class Budget(Policy):
    """What a sweep may spend, and a reading may take.

    hours: wall time of the training sweep over all its attempts; steps: of all trials together. What runs when they are
    spent stops where it is, and the rest is not begun. latency_ms: the most that one tracklet of ``frames`` frames may
    take, median, bytes to text, on a trial's cores. memory_mib: the most that weights and what lives beside them may take
    then. price_per_hour: of the machine that will serve, for the objective cost and for cost_per_million, the most that a
    million items may cost, read one after another.
    """

    hours: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    latency_ms: float = Field(50.0, gt=0)
    memory_mib: float | None = Field(None, gt=0)
    cost_per_million: float | None = Field(None, gt=0)
    frames: int = Field(8, ge=1)
    price_per_hour: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _cost_has_a_price(self) -> Budget:
        if self.cost_per_million is not None and self.price_per_hour is None:
            raise ValueError("cost_per_million needs price_per_hour, of the machine that will serve")
        return self

    @property
    def limits(self) -> dict[Objective, float]:
        """The most that a reading may take of each measure that is limited."""
        stated: dict[Objective, float | None] = {
            "ms": self.latency_ms,
            "memory": self.memory_mib,
            "cost": self.cost_per_million,
        }
        return {name: limit for name, limit in stated.items() if limit is not None}
