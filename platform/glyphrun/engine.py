"""The one path from bytes to text.

Evaluation, sweeps, the command line and every served replica read frames through an Engine, so what was measured is what
is served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from time import perf_counter

import torch
from torch import Tensor

from glyphrun.batching import batches_of_similar_size
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, frame_ballots, vote
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.images import FrameStack, ImageProcessor, decode_image, pad_stacks, stack_frames
from glyphrun.models.recognizer import Memory, Recognizer, TokenHypothesis
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec


@dataclass(frozen=True)
class Prediction:
    """The reading of one item.

    text: the reading, "" if nothing is readable. confidence: its probability (share of the frames' votes where frames
    are read alone). n_best: readings, best first. votes: what each frame says alone; where frames are read together, only
    if asked for.
    timings: milliseconds of the batch that the item was read in, a stage each. provenance: where the weights come from.
    """

    text: str
    confidence: float
    n_best: tuple[Hypothesis, ...]
    votes: tuple[Ballot, ...]
    abstained: bool
    timings: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


class Engine:
    """A recognizer with its codec, image processor and decode settings, ready to read."""

    def __init__(
        self,
        recognizer: Recognizer,
        codec: Codec | SubwordCodec,
        processor: ImageProcessor,
        settings: DecodeSettings | None = None,
        *,
        device: torch.device | None = None,
        precision: Precision | None = None,
        provenance: dict[str, str] | None = None,
    ) -> None:
        self.device = device or default_device()
        self.precision: Precision = precision or default_precision(self.device)
        recognizer = recognizer.to(self.device)
        if self.precision != "float32":
            # A copy: half the bytes and no cast at every layer, while training keeps its own weights.
            recognizer = copy.deepcopy(recognizer).to(getattr(torch, self.precision))
        self.recognizer = recognizer.eval()
        self.codec = codec
        self.processor = processor
        self.settings = settings or DecodeSettings()
        self.provenance = provenance or {}

    def read(
        self, items: Sequence[Sequence[bytes]], *, names: Sequence[str] | None = None, explain: bool = False
    ) -> list[Prediction]:
        """Encoded images in, one prediction an item out; an item is a still image or the frames of a tracklet.

        explain asks also what each frame of a jointly read tracklet says alone. Raises ImageError naming the item.
        """
        if not items:
            return []
        started = perf_counter()
        labels = names or [f"item {number}" for number in range(len(items))]
        # One thread: small images spend their time under the interpreter's lock, and more threads only fight for it.
        prepared = [self.prepare(frames, name=label) for frames, label in zip(items, labels, strict=True)]
        timings = {"decode": _milliseconds(started)}
        return self.read_prepared(prepared, explain=explain, timings=timings)

    def prepare(self, frames: Sequence[bytes], *, name: str) -> FrameStack:
        """The encoded frames of one item at the recognizer's size. Raises ImageError naming the item and the frame."""
        if not frames:
            raise ValueError(f"{name} has no frames: give at least one image")
        named = [(f"{name}, frame {number}" if len(frames) > 1 else name, data) for number, data in enumerate(frames)]
        ready = [self.processor(decode_image(data, name=label)) for label, data in named]
        return stack_frames(ready, self.processor.padding)

    def read_prepared(
        self,
        items: Sequence[FrameStack],
        *,
        explain: bool = False,
        timings: dict[str, float] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Prepared items of any shapes in, predictions in their order out; items of similar size are read together.

        progress is told how many items each batch had.
        """
        found: dict[int, Prediction] = {}
        for batch in batches_of_similar_size([item.shape for item in items]):
            padded = pad_stacks([items[number] for number in batch], self.processor.padding)
            frames, mask, sizes = map(torch.from_numpy, padded)
            read = self.read_batch(frames, mask, sizes, explain=explain, timings=timings)
            found.update(zip(batch, read, strict=True))
            if progress:
                progress(len(batch))
        return [found[number] for number in range(len(items))]

    @torch.inference_mode()
    def read_batch(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        sizes: Tensor | None = None,
        *,
        explain: bool = False,
        timings: dict[str, float] | None = None,
    ) -> list[Prediction]:
        """frames: (B, T, 3, H, W) uint8; frame_mask: (B, T) bool, True where a frame exists; sizes: (B, T, 2) long."""
        started = perf_counter()
        frame_mask = frame_mask.to(self.device)
        pixels = self.processor.normalise(frames.to(self.device), getattr(torch, self.precision))
        memory = self.recognizer.encode(pixels, frame_mask, None if sizes is None else sizes.to(self.device))
        encoded = perf_counter()
        found = self._hypotheses(memory)
        alone = found if not self.recognizer.reads_frames_together else None
        if explain and alone is None:
            each = torch.arange(len(memory.frame_tokens), device=self.device).unsqueeze(1)
            alone = self._hypotheses(self.recognizer.regroup(memory, each, torch.ones_like(each, dtype=torch.bool)))
        counts = frame_mask.sum(1).tolist()
        stages = {**(timings or {}), "encode": (encoded - started) * 1e3, "search": _milliseconds(encoded)}
        by_frame = None if alone is None else _grouped(alone, counts)
        if not self.recognizer.reads_frames_together:
            assert by_frame is not None
            voted = [vote(item, self.settings.vote_floor) for item in by_frame]
            return [self._prediction(n_best, ballots, stages) for n_best, ballots in voted]
        ballots = (
            [frame_ballots(item, self.settings.vote_floor) for item in by_frame] if by_frame else [[]] * len(found)
        )
        return [self._prediction(n_best, votes, stages) for n_best, votes in zip(found, ballots, strict=True)]

    def _hypotheses(self, memory: Memory) -> list[list[Hypothesis]]:
        return [[self._text(found) for found in item] for item in search(self.recognizer, memory, self.settings)]

    def _text(self, found: TokenHypothesis) -> Hypothesis:
        text, pieces = self.codec.decode(found.tokens), self.codec.pieces(found.tokens)
        return Hypothesis(text, found.log_prob, found.token_log_probs, pieces)

    def _prediction(
        self, n_best: Sequence[Hypothesis], votes: Sequence[Ballot], timings: dict[str, float]
    ) -> Prediction:
        best = n_best[0]
        confidence = exp(best.log_prob)
        return Prediction(
            text=best.text,
            confidence=confidence,
            n_best=tuple(n_best[: self.settings.n_best]),
            votes=tuple(votes),
            abstained=confidence < self.settings.abstain_below,
            timings=dict(timings),
            provenance=self.provenance,
        )


def _grouped(found: list[list[Hypothesis]], counts: list[int]) -> list[list[list[Hypothesis]]]:
    rows = iter(found)
    return [[next(rows) for _ in range(count)] for count in counts]


def _milliseconds(since: float) -> float:
    return (perf_counter() - since) * 1e3
