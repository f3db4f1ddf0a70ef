"""Who reads: the champion, and while a release is under way its challenger too. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from glyphrun.encoded import Embedding
from glyphrun.prediction import Prediction
from glyphrun_serve.comparison import Comparison, Tally
from glyphrun_serve.models import Failed, Lost, Model, ReadBy, Refused, Unanswered, Unreadable, expect_model
from glyphrun_serve.release_plan import Plan
from glyphrun_serve.schemas import ColdStart, ModelCard

# Items of a shadow that are read at once; a challenger that is slower than its champion skips some.
SHADOWS = 4

Found = Prediction | ReadBy[Prediction] | Unreadable | Unanswered | Failed


class Portions:
    """Says yes to so many percent of the questions, evenly and without chance: of 100, exactly 10 for 10 %."""

    def __init__(self, percent: float) -> None:
        self._percent = percent
        self._owed = 0.0

    def due(self) -> bool:
        self._owed += self._percent
        if self._owed < 100 - 1e-9:
            return False
        self._owed -= 100
        return True


@dataclass
class Use:
    """How many items a release has; once it is retired it is not asked any more."""

    busy: int = 0
    retired: bool = False


class Served:
    """A model of a release, alone or with one of its adapters."""

    def __init__(self, model: Model, role: str, use: Use) -> None:
        self.card = model.card
        self.role = role
        self.model = model
        self.use = use

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Found:
        with self._used():
            return await self.model.read(frames, name=name, explain=explain)

    async def embed(
        self, frames: Sequence[bytes], *, name: str
    ) -> Embedding | ReadBy[Embedding] | Unreadable | Refused | Failed:
        with self._used():
            return await self.model.embed(frames, name=name)

    async def ready(self) -> dict[str, ColdStart]:
        return await self.model.ready()

    @contextmanager
    def _used(self) -> Iterator[None]:
        if self.use.retired:  # a clip has begun with a version that is replaced meanwhile
            raise Lost(f"version {self.card.version} is served no more")
        self.use.busy += 1
        try:
            yield
        finally:
            self.use.busy -= 1


class Adapted:
    """A release's model with an adapter, of whichever release answers for the champion when an item is read."""

    def __init__(self, card: ModelCard, reader: Callable[[], Served]) -> None:
        """reader: who reads now. Raises Lost if nobody has the adapter any more."""
        self.card = card
        self._reader = reader

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Found:
        reader = self._reader()
        return _by(reader, await reader.read(frames, name=name, explain=explain))

    async def embed(
        self, frames: Sequence[bytes], *, name: str
    ) -> Embedding | ReadBy[Embedding] | Unreadable | Refused | Failed:
        reader = self._reader()
        found = await reader.embed(frames, name=name)
        return ReadBy(found, reader.card) if isinstance(found, Embedding) else found

    async def ready(self) -> dict[str, ColdStart]:
        return await self._reader().ready()


class Traffic:
    """A model whose items go to the champion, to its challenger or to both, as decided when each is read.

    Each comes with the models that are itself with an adapter; who asks for one asks the champion. outcomes counts what
    became of them, by role, version and outcome.
    """

    def __init__(
        self, champion: Model, *adapted: Model, answer_s: float, clock: Callable[[], float] = perf_counter
    ) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self._champion, *self._adapted = _served("champion", champion, *adapted)
        self._challenger: Served | None = None
        self._challenger_adapted: list[Served] = []
        self._former: list[Use] = []
        self._plan: Plan | None = None
        self._portions = Portions(0)
        self._answer_s = answer_s
        self._clock = clock
        self._seen = Comparison()
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def card(self) -> ModelCard:
        return self._lead.card

    def cards(self) -> list[ModelCard]:
        """What can be asked for, what answers where nothing is asked for first."""
        adapted = [model.card for model in self._led]
        if self._challenger is None or self._lead is self._challenger:
            return [self.card, *adapted]
        champion, challenger = (
            model.card.model_copy(update={"role": model.role}) for model in (self._champion, self._challenger)
        )
        return [champion, *adapted, challenger]

    def choose(self, name: str | None) -> Model:
        """Who answers a request for a model: a version by its name, or who is due. Raises UnknownModel."""
        for model in (self._lead, self._challenger):
            if model is not None and name == f"{model.card.name}@{model.card.version}":
                return model
        card = expect_model(name, [self.card, *(model.card for model in self._led)])
        return self if card is self.card else Adapted(card, partial(self._wearing, card.name))

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Found:
        """What is read, and by whom. Of a canary, whatever is wrong with the challenger, the champion answers."""
        plan, challenger = self._plan, self._challenger
        if challenger is not None and plan is not None:
            if plan.mode == "all":
                return _by(challenger, await self._counted(challenger, frames, name, explain))
            if plan.mode == "canary" and self._portions.due():
                tried = await self._tried(challenger, frames, name, explain)
                if tried is not None:
                    return ReadBy(tried, challenger.card)
        # The champion, but if it has been replaced while its canary was asked, what answers for it.
        lead = self._lead
        found = await self._counted(lead, frames, name, explain)
        if challenger is not None and plan is not None and plan.mode == "shadow" and isinstance(found, Prediction):
            self._shadow(challenger, frames, name, explain, found)
        return _by(lead, found)

    async def embed(
        self, frames: Sequence[bytes], *, name: str
    ) -> Embedding | ReadBy[Embedding] | Unreadable | Refused | Failed:
        """Features of the champion alone: those of two releases cannot be compared with each other."""
        lead = self._lead
        found = await lead.embed(frames, name=name)
        return ReadBy(found, lead.card) if isinstance(found, Embedding) else found

    async def ready(self) -> dict[str, ColdStart]:
        """Of what answers those who ask for no version."""
        return await self._lead.ready()

    def follow(self, plan: Plan | None, challenger: Model | None, *adapted: Model) -> None:
        """What holds for items from now on. challenger: goes on if it is the same model as before."""
        before = self._challenger
        if before is not None and before.model is not challenger:
            before.use.retired = True
            self._former = [use for use in (*self._former, before.use) if use.busy]
        if challenger is None:
            self._challenger, self._challenger_adapted = None, []
        elif before is None or before.model is not challenger:
            self._challenger, *self._challenger_adapted = _served("challenger", challenger, *adapted)
        self._plan = plan
        self._champion.use.retired = plan is not None and plan.mode == "all"
        self._portions = Portions(plan.percent if plan else 0)
        self._seen = Comparison()

    def take_seen(self) -> Comparison:
        """What became of items since this was asked last, or since another plan holds."""
        seen, self._seen = self._seen, Comparison()
        return seen

    @property
    def champion_busy(self) -> int:
        return self._champion.use.busy

    @property
    def challenger_busy(self) -> int:
        """Items that challengers have, those that are asked no more among them."""
        uses = self._former if self._challenger is None else [*self._former, self._challenger.use]
        return sum(use.busy for use in uses)

    @property
    def _lead(self) -> Served:
        if self._challenger is not None and self._plan is not None and self._plan.mode == "all":
            return self._challenger
        return self._champion

    @property
    def _led(self) -> list[Served]:
        return self._adapted if self._lead is self._champion else self._challenger_adapted

    def _wearing(self, name: str) -> Served:
        for model in self._led:
            if model.card.name == name:
                return model
        raise Lost(f"{name} is served no more")

    async def _tried(self, challenger: Served, frames: Sequence[bytes], name: str, explain: bool) -> Prediction | None:
        """None if the champion has to answer, for which half of the time is left."""
        try:
            found = await self._counted(challenger, frames, name, explain, self._answer_s / 2)
        except Exception:  # whatever it is has been counted, and no client is to suffer from it
            return None
        return found if isinstance(found, Prediction) else None

    def _shadow(
        self, challenger: Served, frames: Sequence[bytes], name: str, explain: bool, answered: Prediction
    ) -> None:
        if len(self._shadows) >= SHADOWS:
            self._seen.skipped += 1
            return

        plan = self._plan

        async def compare() -> None:
            found = await self._tried(challenger, frames, name, explain)
            if found is not None and self._plan is plan:
                alike = (found.text, found.abstained) == (answered.text, answered.abstained)
                self._seen.agreed += alike
                self._seen.differed += not alike

        task = asyncio.create_task(compare())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _counted(
        self, release: Served, frames: Sequence[bytes], name: str, explain: bool, within_s: float | None = None
    ) -> Found:
        started, plan = self._clock(), self._plan

        def tally() -> Tally:
            if self._plan is not plan:  # what was asked under another plan says nothing of this one
                return Tally()
            return self._seen.champion if release is self._champion else self._seen.challenger

        def fail(reason: str) -> None:
            tally().fail(reason)
            self._outcome(release, "failed")

        try:
            async with asyncio.timeout(within_s):
                found = await release.read(frames, name=name, explain=explain)
        except TimeoutError:
            fail(f"no answer within {within_s:g} s")
            raise
        except asyncio.CancelledError:
            # By the deadline of the request, or because its client has gone.
            if self._clock() - started > 0.95 * self._answer_s:
                fail(f"no answer within {self._answer_s:g} s")
            raise
        except Exception as error:
            fail(str(error) or type(error).__name__)
            raise
        if isinstance(found, Prediction):
            tally().read(found, (self._clock() - started) * 1e3)
            self._outcome(release, "abstained" if found.abstained else "answered")
        elif isinstance(found, Unanswered | Failed):
            fail(found.message)
        return found

    def _outcome(self, release: Served, outcome: str) -> None:
        self.outcomes[release.role, release.card.version, outcome] += 1


def _served(role: str, *models: Model) -> list[Served]:
    use = Use()
    return [Served(model, role, use) for model in models]


def _by(release: Served, found: Found) -> Found:
    return ReadBy(found, release.card) if isinstance(found, Prediction) else found
