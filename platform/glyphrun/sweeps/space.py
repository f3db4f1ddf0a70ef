"""What is searched of a candidate: dimensions, the conditions under which they apply, and points drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from glyphrun.sweeps.errors import KIND, ExperimentError

Look = Callable[[Mapping[str, Any], str], Any]  # (what is sampled so far, path) → the value that a trial would have

BEAM_ONLY = ("width", "length_penalty", "early_stop", "cloze_rescore")
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "samples")
RANK, SEARCH = "start.lora.rank", "decode.search"


class Dimension(BaseModel):
    """when: paths of other dimensions or settings of the candidate, each with the value or values that they must have.

    Where they do not, the dimension is not searched and its setting stays as it is declared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: dict[str, Any] = {}


class Choice(Dimension):
    """One of some values."""

    choice: list[Any] = Field(min_length=1)

    def sample(self, share: float) -> Any:
        """share: 0..1."""
        return self.choice[min(int(share * len(self.choice)), len(self.choice) - 1)]

    def values(self) -> list[Any]:
        """All of them."""
        return self.choice


class Grid(Dimension):
    """Values that are all tried, with each combination of the candidate's other grids."""

    grid: list[Any] = Field(min_length=1)

    def sample(self, share: float) -> Any:
        """share: 0..1."""
        return self.grid[min(int(share * len(self.grid)), len(self.grid) - 1)]

    def values(self) -> list[Any]:
        """All of them."""
        return self.grid


class Integer(Dimension):
    """A whole number between two ends, both included."""

    integer: tuple[int, int]

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        low, high = self.integer
        if not low < high:
            raise ValueError(f"integer needs two whole numbers, the smaller first, not {low} and {high}")
        return self

    def sample(self, share: float) -> int:
        """share: 0..1."""
        low, high = self.integer
        return min(low + int(share * (high - low + 1)), high)

    def values(self) -> list[Any]:
        """All of them."""
        low, high = self.integer
        return list(range(low, high + 1))


class Uniform(Dimension):
    """A number between two ends."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        low, high = self.uniform
        if not low < high:
            raise ValueError(f"uniform needs two numbers, the smaller first, not {low} and {high}")
        return self

    def sample(self, share: float) -> float:
        """share: 0..1."""
        low, high = self.uniform
        return rounded(low + (high - low) * share, low, high)


class LogUniform(Dimension):
    """A number whose logarithm is uniform between two ends."""

    log_uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        low, high = self.log_uniform
        if not 0 < low < high:
            raise ValueError(f"log_uniform needs two positive numbers, the smaller first, not {low} and {high}")
        return self

    def sample(self, share: float) -> float:
        """share: 0..1."""
        low, high = self.log_uniform
        return rounded(low * (high / low) ** share, low, high)


KINDS: dict[str, type[Dimension]] = {
    "choice": Choice,
    "grid": Grid,
    "integer": Integer,
    "uniform": Uniform,
    "log_uniform": LogUniform,
}


def _kind(declared: Any) -> str | None:
    if isinstance(declared, Dimension):
        return KIND + next(name for name, kind in KINDS.items() if isinstance(declared, kind))
    named = [name for name in KINDS if isinstance(declared, dict) and name in declared]
    return KIND + named[0] if named else None


AnyDimension = Annotated[
    Annotated[Choice, Tag(":choice")]
    | Annotated[Grid, Tag(":grid")]
    | Annotated[Integer, Tag(":integer")]
    | Annotated[Uniform, Tag(":uniform")]
    | Annotated[LogUniform, Tag(":log_uniform")],
    Discriminator(
        _kind,
        custom_error_type="dimension",
        custom_error_message=f"a dimension of the space is a mapping with one of {', '.join(KINDS)}",
    ),
]
Space = Mapping[str, AnyDimension]


def applies(path: str, dimension: Dimension, look: Look, sampled: Mapping[str, Any]) -> bool:
    """Whether a dimension has an influence beside what is sampled already.

    Without being told, settings of LoRA apply where its rank is above 0, those of beams where ``decode.search`` is beam
    and those of sampling where it is sample.
    """
    if path.startswith("start.lora.") and path != RANK and not look(sampled, RANK):
        return False
    setting = path.removeprefix("decode.")
    if path.startswith("decode.") and setting in (*BEAM_ONLY, *SAMPLING_ONLY):
        needed = "beam" if setting in BEAM_ONLY else "sample"
        if look(sampled, SEARCH) != needed:
            return False
    return all(
        look(sampled, other) in (wanted if isinstance(wanted, list) else [wanted])
        for other, wanted in dimension.when.items()
    )


def ordered(space: Space) -> list[str]:
    """The paths of a space, each behind those that its conditions name. Raises ExperimentError if they go in a circle."""
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [path for path in waiting if not any(other in waiting for other in _asks(path, space))]
        if not ready:
            raise ExperimentError(f"the conditions of {' and '.join(waiting)} wait for each other: leave one out")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


def draw(space: Space, count: int, rng: np.random.Generator, look: Look) -> list[dict[str, Any]]:
    """Points of a space: grids crossed, and beside them a Latin hypercube (McKay 1979) of the dimensions that apply.

    Raises ExperimentError if there are fewer points than combinations of the grids.
    """
    grids = {path: dimension for path, dimension in space.items() if isinstance(dimension, Grid)}
    crossed = list(cross(grids, look))
    if grids and count < len(crossed):
        raise ExperimentError(
            f"{' and '.join(grids)} make a grid of {len(crossed)} combinations, and {count} trials are for it: raise trials"
        )
    points = [dict(crossed[number % len(crossed)]) for number in range(count)]
    for path in ordered(space):
        if path in grids:
            continue
        those = [point for point in points if applies(path, space[path], look, point)]
        strata = (rng.permutation(len(those)) + rng.random(len(those))) / max(len(those), 1)
        for point, share in zip(those, strata, strict=True):
            point[path] = space[path].sample(float(share))
    return points


def cross(space: Space, look: Look) -> Iterator[dict[str, Any]]:
    """Every point of a space whose dimensions have finitely many values. Raises ExperimentError for others."""

    def from_here(paths: list[str], point: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not paths:
            yield point
            return
        path, *rest = paths
        dimension = space[path]
        if isinstance(dimension, Uniform | LogUniform):
            raise ExperimentError(
                f"{path} has infinitely many values: give a grid or choice of it, or another searcher"
            )
        if not applies(path, dimension, look, point):
            yield from from_here(rest, point)
            return
        for value in dimension.values():
            yield from from_here(rest, {**point, path: value})

    yield from from_here(ordered(space), {})


def _asks(path: str, space: Space) -> set[str]:
    """The dimensions that must be sampled before it is known whether this one applies."""
    asked = set(space[path].when)
    if path.startswith("start.lora.") and path != RANK:
        asked.add(RANK)
    if path.removeprefix("decode.") in (*BEAM_ONLY, *SAMPLING_ONLY) and path.startswith("decode."):
        asked.add(SEARCH)
    return asked & set(space)


def rounded(value: float, low: float, high: float) -> float:
    """A number to three digits, which are enough to be told, and not over the ends."""
    return min(max(float(f"{value:.3g}"), low), high)
