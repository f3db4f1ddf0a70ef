"""Who of a sweep reads in which ways: the survivors alone and in ensembles, under every setting that is crossed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement

from pydantic import Field, model_validator

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.sweeps.decode_settings import Crossed, DecodeSpace, plan_points
from glyphrun.sweeps.points import DecodePoint, distinct, greedy_of
from glyphrun.sweeps.readers import Known


class DecodeSearch(Crossed):
    """Ways of reading that are tried on what a sweep has trained, all on val.

    survivors: how many of the best trials read. ensembles: of how many survivors ensembles are made, each of all that can be
    made of so many; true: of two and more, false: none. The greedy reading of each survivor is there in any case.
    """

    survivors: int = Field(3, ge=1, le=8)
    ensembles: bool | list[int] = True

    @model_validator(mode="after")
    def _ensembles_can_be_made(self) -> DecodeSearch:
        for size in self.ensembles if isinstance(self.ensembles, list) else ():
            if not 2 <= size <= self.survivors:
                raise ValueError(
                    f"ensembles of {size} cannot be made of {self.survivors} survivors: name sizes from 2 to {self.survivors}"
                )
        if isinstance(self.ensembles, list) and len(set(self.ensembles)) < len(self.ensembles):
            raise ValueError(f"ensembles {', '.join(map(str, self.ensembles))}: name each size once")
        return self

    def groups(self, survivors: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Who reads: each survivor alone, then ensembles of them."""
        together = [*range(2, len(survivors) + 1)] if self.ensembles else []
        for size in (1, *sorted(self.ensembles if isinstance(self.ensembles, list) else together)):
            yield from combinations(survivors, size)

    def points(self, survivors: Sequence[str], known: Known) -> tuple[list[DecodePoint], int]:
        """Every way of reading, and how many combinations were left out because they contradict themselves."""
        groups = [list(group) for group in self.groups(survivors)]
        crossed = self.model_dump(include={"base", "space", "ensemble_vote"})
        points, left_out = plan_points(DecodeSpace(**crossed, members=groups), *known)
        return distinct([*points, *map(greedy_of, points)]), left_out

    def counts(self, trials: int, families: Mapping[str, tuple[str, DecodeSettings]]) -> tuple[int, int]:
        """How many ways of reading there are at least and at most, depending on who survives of so many trials.

        families: the kind of each one's recognizer and how it is declared to be read; what is of one family can be averaged.
        """
        found = []
        for chosen in combinations_with_replacement(families, min(self.survivors, trials)):
            readers = {f"reader {number}": family for number, family in enumerate(chosen)}
            known = Known(
                own={name: families[family][1] for name, family in readers.items()},
                kinds={name: families[family][0] for name, family in readers.items()},
                inputs=readers,
            )
            found.append(len(self.points(list(readers), known)[0]))
        return min(found), max(found)
