"""The one path from bytes to text.

Evaluation, sweeps, the command line and every served replica read frames through an Engine, so what was measured is what
is served.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, frame_ballots, vote
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.images import ImageProcessor, decode_image
from glyphrun.models.recognizer import Memory, Recognizer, TokenHypothesis
from glyphrun.text import Codec

PADDED_FRAMES = 512  # of one pass through the encoder: larger batches are no faster and take memory without bound


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
        codec: Codec,
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
        return [
            prediction
            for chunk in _chunks(prepared)
            for prediction in self.read_prepared(chunk, explain=explain, timings=timings)
        ]

    def prepare(self, frames: Sequence[bytes], *, name: str) -> np.ndarray:
        """The encoded frames of one item → (T, 3, H, W) uint8. Raises ImageError naming the item and the frame."""
        if not frames:
            raise ValueError(f"{name} has no frames: give at least one image")
        named = [(f"{name}, frame {number}" if len(frames) > 1 else name, data) for number, data in enumerate(frames)]
        return np.stack([self.processor(decode_image(data, name=label)).pixels for label, data in named])

    def read_prepared(
        self, items: Sequence[np.ndarray], *, explain: bool = False, timings: dict[str, float] | None = None
    ) -> list[Prediction]:
        """items: (T, 3, H, W) uint8 each, T may differ."""
        frames, mask = pad_frames(items)
        return self.read_batch(torch.from_numpy(frames), torch.from_numpy(mask), explain=explain, timings=timings)

    @torch.inference_mode()
    def read_batch(
        self, frames: Tensor, frame_mask: Tensor, *, explain: bool = False, timings: dict[str, float] | None = None
    ) -> list[Prediction]:
        """frames: (B, T, 3, H, W) uint8; frame_mask: (B, T) bool, True where a frame exists."""
        started = perf_counter()
        frame_mask = frame_mask.to(self.device)
        pixels = self.processor.normalise(frames.to(self.device), getattr(torch, self.precision))
        memory = self.recognizer.encode(pixels, frame_mask)
        encoded = perf_counter()
        found = self._hypotheses(memory)
        alone = found if not self.recognizer.reads_frames_together else None
        if explain and alone is None:
            alone = self._hypotheses(self.recognizer.split_frames(memory))
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
        return Hypothesis(self.codec.decode(found.tokens), found.log_prob, found.token_log_probs)

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


def _chunks(items: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Neighbouring items in batches of at most PADDED_FRAMES frames, padding counted."""
    start = 0
    for end in range(1, len(items) + 1):
        longest = max(map(len, items[start : end + 1]))
        if end == len(items) or longest * (end + 1 - start) > PADDED_FRAMES:
            yield items[start:end]
            start = end


def pad_frames(items: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3, H, W) uint8 each → frames (B, longest, 3, H, W) uint8 and mask (B, longest) bool."""
    longest = max(len(item) for item in items)
    frames = np.zeros((len(items), longest, *items[0].shape[1:]), np.uint8)
    mask = np.zeros((len(items), longest), bool)
    for number, item in enumerate(items):
        frames[number, : len(item)] = item
        mask[number, : len(item)] = True
    return frames, mask


def _grouped(found: list[list[Hypothesis]], counts: list[int]) -> list[list[list[Hypothesis]]]:
    rows = iter(found)
    return [[next(rows) for _ in range(count)] for count in counts]


def _milliseconds(since: float) -> float:
    return (perf_counter() - since) * 1e3
