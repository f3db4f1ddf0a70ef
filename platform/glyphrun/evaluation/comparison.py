"""Whether a reader may take the place of another: what both read on the same items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from glyphrun.evaluation.metrics import count_errors
from glyphrun.evaluation.significance import mcnemar, paired_bootstrap

SIGNIFICANT = 0.05


class Rate(BaseModel):
    """An error rate of two readers. difference: the candidate's less the champion's, with its 95 % interval and p."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    p: float


class Comparison(BaseModel):
    """A candidate against a champion on the same n items.

    errors: the share of items with any error, 1 less exact match. cer: null if the truths have no characters.
    only_candidate, only_champion: how many items only the one reads right, with McNemar's p.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int
    errors: Rate
    cer: Rate | None
    only_candidate: int
    only_champion: int
    mcnemar_p: float

    def failures(self, margin: float) -> list[str]:
        """Why the candidate may not take the champion's place, by how much it fails; empty if it may.

        It may if it is shown to be no worse: the worse end of the 95 % interval of the difference lies within the margin,
        for exact match and for CER (a non-inferiority test), and McNemar's test does not find it worse by however little.
        """
        found = []
        for what, rate in (("items read wrong", self.errors), ("CER", self.cer)):
            if rate is not None and rate.high > margin:
                certain = rate.low > 0
                found.append(
                    f"{what}: {rate.candidate:.4f} against {rate.champion:.4f}, a difference of {rate.difference:+.4f} (95 % "
                    f"interval {rate.low:+.4f} to {rate.high:+.4f}, p = {rate.p:.3g}); at most {margin:+.4f} may be "
                    f"possible, and {rate.high - margin:.4f} more is"
                    + ("" if certain else f": {self.n} items are too few to rule it out")
                )
        if self.mcnemar_p < SIGNIFICANT and self.only_champion > self.only_candidate:
            found.append(
                f"McNemar: the champion alone reads {self.only_champion} items right and the candidate alone "
                f"{self.only_candidate}, p = {self.mcnemar_p:.3g}, which is under {SIGNIFICANT}"
            )
        return found


def compare(truths: Sequence[str], candidate: Sequence[str], champion: Sequence[str]) -> Comparison:
    """Paired bootstrap and McNemar's test over what two readers say of the same items. Raises ValueError for none."""
    new, old = count_errors(truths, candidate), count_errors(truths, champion)
    apart = mcnemar(new.exact, old.exact)
    spelt = new.characters.sum() > 0
    return Comparison(
        n=len(truths),
        errors=_rate(~new.exact, ~old.exact, np.ones(len(truths))),
        cer=_rate(new.character_edits, old.character_edits, new.characters) if spelt else None,
        only_candidate=apart.only_one,
        only_champion=apart.only_other,
        mcnemar_p=apart.p,
    )


def _rate(candidate: ArrayLike, champion: ArrayLike, below: np.ndarray) -> Rate:
    found = paired_bootstrap(candidate, champion, below)
    return Rate(
        candidate=float(np.sum(candidate) / below.sum()),
        champion=float(np.sum(champion) / below.sum()),
        **found._asdict(),
    )
