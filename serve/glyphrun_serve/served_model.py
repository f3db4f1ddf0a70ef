"""One bundle's share of the graph: its replicas are asked, and its members vote, in whatever process takes requests."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from ray.serve.handle import DeploymentHandle

from glyphrun.encoded import Embedding
from glyphrun.images import ImageProcessor
from glyphrun.members import EnsembleError, Jury, Reading, no_features, vote_of_members
from glyphrun.prediction import Prediction
from glyphrun.stopwatch import milliseconds_since
from glyphrun_serve.calls import BUSY, answer_of
from glyphrun_serve.limits import Limits
from glyphrun_serve.models import Busy, Failed, Lost, Refused, Unanswered, Unreadable
from glyphrun_serve.panel import Ask, Panel
from glyphrun_serve.preprocess import Preprocess
from glyphrun_serve.schemas import ColdStart, ModelCard

READY_S = 2.0  # a loaded replica says so within milliseconds
# Prepared frames up to so many bytes are sent by value: over gRPC a call takes about 2 ms less than through Ray's objects.
# Larger ones stay in shared memory and go from replica to replica by reference, so that they never come through here.
BY_VALUE_BYTES = 1024**2

Found = Prediction | Unreadable | Unanswered | Failed
# A prepared item, or the response that will hold it, for an attempt that is counted from 0.
Prepare = Callable[[int], Any]


@dataclass(frozen=True)
class Release:
    """What a bundle is served with.

    preprocess: what decodes images; whoever asks does where there is no such deployment. recognizers: by their members'
    names; one that answers alone needs no jury. adapters: the cards of those that it can read with, by their names.
    """

    card: ModelCard
    processors: Sequence[ImageProcessor]
    recognizers: Mapping[str, DeploymentHandle[Any]]
    preprocess: DeploymentHandle[Any] | None = None
    jury: Jury | None = None
    adapters: Mapping[str, ModelCard] = field(default_factory=dict)


class ServedModel:
    """Reads with the replicas of a release.

    Members vote here and not in a deployment of their own, which would be one more hop for every request, while a vote over
    n-best lists takes a fraction of a millisecond. Correction after the vote runs here too, in a thread.
    """

    def __init__(self, release: Release, limits: Limits) -> None:
        self.card = release.card
        self._adapter = ""
        self._adapters = release.adapters
        self._preprocess = release.preprocess
        self._decoder = Preprocess(release.processors)
        self._frame_bytes = sum(3 * processor.height * processor.width for processor in release.processors)
        self._recognizers = dict(release.recognizers)
        self._limits = limits
        self._jury = jury = release.jury
        if jury is not None:
            self._corrector = jury.corrector()
            self._panel = Panel(list(self._recognizers), jury.settings, limits.member_s)
        self._methods: dict[tuple[str, str, str, bool], DeploymentHandle[Any]] = {}
        self._started = False

    def adapted(self) -> list[ServedModel]:
        """The same replicas, asked to read with each of the adapters."""
        found = []
        for adapter, card in self._adapters.items():
            other = copy.copy(self)
            other.card, other._adapter = card, adapter
            found.append(other)
        return found

    async def read(self, frames: Sequence[bytes], *, name: str, explain: bool) -> Found:
        """What the recognizer says of an item, or its members together."""
        prepared = await self._prepared(frames, name)
        if isinstance(prepared, Unreadable):
            return prepared
        recognize = {name: self._method(handle, "recognize", frames) for name, handle in self._recognizers.items()}
        if self._jury is not None:
            return await self._voted(self._jury, partial(self._ask, prepared, recognize))
        (alone,) = recognize.values()
        found: Found = await answer_of(lambda attempt: alone.remote(prepared(attempt), explain))
        return found

    async def embed(self, frames: Sequence[bytes], *, name: str) -> Embedding | Unreadable | Refused | Failed:
        """The features of an item, which a recognizer alone has."""
        if self._jury is not None:
            return Refused(no_features(self._recognizers))
        prepared = await self._prepared(frames, name)
        if isinstance(prepared, Unreadable):
            return prepared
        (alone,) = self._recognizers.values()
        embed = self._method(alone, "embed", frames)
        found: Embedding | Unreadable | Refused | Failed = await answer_of(
            lambda attempt: embed.remote(prepared(attempt))
        )
        return found

    async def ready(self) -> dict[str, ColdStart]:
        """How long each deployment took to start; empty while no answers can be given.

        That is until every member is warm, and later whenever fewer of them than a quorum are.
        """
        others = [self._preprocess] if self._preprocess else []
        said = await asyncio.gather(*map(_cold_start, (*self._recognizers.values(), *others)))
        warm = [start for start in said[: len(self._recognizers)] if start]
        self._started = self._started or None not in said
        quorum = self._jury.settings.quorum if self._jury else 1
        if not self._started or len(warm) < quorum or None in said[len(self._recognizers) :]:
            return {}
        return dict(start for start in said if start)

    async def _voted(self, jury: Jury, ask: Ask) -> Found:
        started = perf_counter()
        readings = await self._panel.readings(ask)
        if isinstance(readings, Unreadable):
            return readings
        read = milliseconds_since(started)
        vote = partial(vote_of_members, readings, jury.settings, jury.decode, self._corrector, jury.provenance)
        try:
            (found,) = await asyncio.to_thread(vote) if self._corrector else vote()
        except EnsembleError as error:
            if any(reading.status == f"failed: {BUSY}" for reading in readings.values()):
                raise Busy from error
            return Unanswered(str(error))
        found.timings.update(_decoded(readings), read=read, vote=milliseconds_since(started) - read)
        return found

    async def _ask(
        self, prepared: Prepare, recognize: Mapping[str, DeploymentHandle[Any]], member: str
    ) -> Prediction | Failed | Unreadable:
        async with asyncio.timeout(self._limits.answer_s):
            found: Prediction | Failed | Unreadable = await answer_of(
                lambda attempt: recognize[member].remote(prepared(attempt), False), partial(self._panel.died, member)
            )
        return found

    async def _prepared(self, frames: Sequence[bytes], name: str) -> Prepare | Unreadable:
        """What is passed on to the recognizers: the item, or if it is large the response that will hold it.

        A response goes from replica to replica and is not waited for here. A replica that dies may have held it, so for
        another attempt frames are prepared anew.
        """
        if self._preprocess is None:
            item = await self._decoder.prepare(frames, name)
        else:
            prepare = self._method(self._preprocess, "prepare", frames)
            if self._large(frames):
                first = prepare.remote(frames, name)
                return lambda attempt: prepare.remote(frames, name) if attempt else first
            item = await answer_of(lambda _: prepare.remote(frames, name))
        return item if isinstance(item, Unreadable) else lambda _: item

    def _large(self, frames: Sequence[bytes]) -> bool:
        return len(frames) * self._frame_bytes > BY_VALUE_BYTES

    def _method(self, handle: DeploymentHandle[Any], name: str, frames: Sequence[bytes]) -> DeploymentHandle[Any]:
        """A method that is to be called with these frames, kept, for it costs as much to make as to call."""
        large, adapter = self._large(frames), "" if handle is self._preprocess else self._adapter
        key = (handle.deployment_name, name, adapter, large)
        if key not in self._methods:
            self._methods[key] = handle.options(
                method_name=name,
                multiplexed_model_id=adapter,
                _by_reference=large,
                request_serialization="pickle",
                response_serialization="pickle",
            )
        return self._methods[key]


async def _cold_start(handle: DeploymentHandle[Any]) -> tuple[str, ColdStart] | None:
    """The name of a deployment with how long a replica of it took to start; None if none answers."""
    try:
        async with asyncio.timeout(READY_S):
            return handle.deployment_name, await answer_of(lambda _: handle.ready.remote())
    except (TimeoutError, Busy, Lost):
        return None


def _decoded(readings: Mapping[str, Reading]) -> dict[str, float]:
    """How long decoding took, which members were told with the frames."""
    for reading in readings.values():
        for prediction in reading.predictions or ():
            return {"decode": prediction.timings["decode"]}
    return {}
