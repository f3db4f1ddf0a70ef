"""Two versions of a model that are served at the same time, and what is seen of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from glyphrun.decoding.vote import Hypothesis
from glyphrun.prediction import Prediction
from glyphrun_serve.comparison import Comparison
from glyphrun_serve.models import Failed, Model, ReadBy, Unanswered, Unreadable
from glyphrun_serve.release_plan import Plan
from glyphrun_serve.schemas import ColdStart
from local_app import CARD, Alone

CANARY = Plan("glyphrun-untrained-2", "2", "canary", 10)
SHADOW = Plan("glyphrun-untrained-2", "2", "shadow")
ALL = Plan("glyphrun-untrained-2", "2", "all")


class Version(Alone):
    """A model that reads its own text in everything, or fails as it is told to."""

    def __init__(self, version: str, text: str = "7", problem: Exception | Failed | Unanswered | None = None) -> None:
        self.card = CARD.model_copy(update={"version": version})
        self.text, self.problem = text, problem
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def read(
        self, frames: Sequence[bytes], *, name: str, explain: bool
    ) -> Prediction | Unreadable | Failed | Unanswered:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.problem, Exception):
            raise self.problem
        if self.problem is not None:
            return self.problem
        return Prediction(self.text, 0.8, (Hypothesis(self.text, -0.2, (-0.1,)),), (), abstained=False)

    async def ready(self) -> dict[str, ColdStart]:
        return {}


async def read(model: Model, count: int) -> Counter[str]:
    """How often each version answered; what is no reading stands as its type."""
    said = [await model.read([b""], name="The image", explain=False) for _ in range(count)]
    return Counter(found.card.version if isinstance(found, ReadBy) else type(found).__name__ for found in said)


def seen(
    champion: tuple[int, int] = (0, 0), challenger: tuple[int, int] = (0, 0), ms: tuple[float, float] = (20, 20)
) -> Comparison:
    """(answered, failed) of each, all answers of a release after the same time."""
    found = Comparison()
    for tally, (answered, failed), took in zip(
        (found.champion, found.challenger), (champion, challenger), ms, strict=True
    ):
        for _ in range(answered):
            tally.read(Prediction("7", 0.5, (), (), abstained=True), took)
        for _ in range(failed):
            tally.fail("RuntimeError: out of tune")
    return found
