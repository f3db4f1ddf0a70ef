"""The one path from bytes to text.

Evaluation, sweeps, the command line and every served replica read frames through an Engine, so what was measured is what
is served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, exp
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphrun.batching import MAX_PIXELS, MAX_PIXELS_ON_CPU, batches_of_similar_size
from glyphrun.decoding.confidence import calibrate
from glyphrun.decoding.early_exit import read_in_turn
from glyphrun.decoding.rescore import CorrectedHypothesis, Corrector, correct_all
from glyphrun.decoding.scorer import Scorer
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, MemberBallot, VoteRules, ballots, vote
from glyphrun.decoding.windows import WindowBatch, rows_of_windows, window_ballots
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.graphemes import graphemes
from glyphrun.images import FrameStack, ImageProcessor, decode_image, pad_stacks, stack_frames
from glyphrun.legibility import legibility
from glyphrun.memory import largest_that_fits, or_out_of_memory
from glyphrun.models.recognizer import Memory, Recognizer, TokenHypothesis, frames_of
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec

WINDOWS_AT_ONCE = 4  # of an item, that early exit counts for a batch: about as many as it reads
HELD = 8  # how many times the frames of an ordinary batch it may hold


@dataclass(frozen=True)
class Prediction:
    """The reading of one item.

    text: the reading, "" if nothing is readable. confidence: its probability (share of the votes where frames are read
    alone or windows vote). n_best: readings, best first. votes: what each frame or each window says; where all frames
    are read together, what each frame says alone if that was asked for. members: what each recognizer of an ensemble says.
    timings: milliseconds of the batch that the item was read in, a stage each. provenance: where the weights come from.
    """

    text: str
    confidence: float
    n_best: tuple[Hypothesis, ...]
    votes: tuple[Ballot, ...]
    abstained: bool
    members: tuple[MemberBallot, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedding:
    """Encoder features of one item, before frames are fused and before anything is read from them.

    frames: for each frame (S, D) float32, a feature for each patch of the picture. pooled: (D,) float32, their mean over
    all patches of all frames.
    """

    pooled: np.ndarray
    frames: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Encoded:
    """A batch after the encoder: what any decode settings can read without encoding again.

    memory: of all frames. counts: how many frames each item has. looks: how legible each frame looks (``legibility``).
    """

    memory: Memory
    counts: list[int]
    looks: list[float]


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
        files: Path | None = None,
    ) -> None:
        """files: the folder of the files that correction names, such as a bundle's."""
        self.device = device or default_device()
        self.precision: Precision = precision or default_precision(self.device)
        recognizer = recognizer.to(self.device)
        dtype = getattr(torch, self.precision)
        others = any(weight.is_floating_point() and weight.dtype != dtype for weight in recognizer.parameters())
        if self.precision != "float32" and others:
            # A copy: half the bytes and no cast at every layer, while training keeps its own weights.
            recognizer = copy.deepcopy(recognizer).to(dtype)
        self.recognizer = recognizer.eval()
        self.codec = codec
        self.processor = processor
        self.settings = settings or DecodeSettings()
        self.provenance = provenance or {}
        self.files = files
        self._take_settings()

    @property
    def processors(self) -> tuple[ImageProcessor, ...]:
        """Those that an item is prepared by."""
        return (self.processor,)

    def with_settings(self, settings: DecodeSettings) -> Engine:
        """The same recognizer read in another way. Raises ValueError if it cannot be."""
        other = copy.copy(self)
        other.settings = settings
        other._take_settings()
        return other

    def _take_settings(self) -> None:
        _check(self.recognizer, self.settings)
        self._corrector: Corrector | None = None
        self._scorer: Scorer | None = None
        if self.settings.correction is not None:
            from glyphrun.correction import load_corrector, shallow_scorer  # here: most readers correct nothing

            self._corrector = load_corrector(self.files or Path(), self.settings.correction, device=self.device)
            self._scorer = shallow_scorer(self._corrector, self.settings.correction, self.codec)

    def read(
        self, items: Sequence[Sequence[bytes]], *, names: Sequence[str] | None = None, explain: bool = False
    ) -> list[Prediction]:
        """Encoded images in, one prediction an item out; an item is a still image or the frames of a tracklet.

        explain asks also what each frame of a wholly read tracklet says alone; windows cast their ballots in any case.
        Raises ImageError naming the item.
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
        return prepare_frames(frames, [self.processor], name=name)[0]

    def read_prepared(
        self,
        items: Sequence[FrameStack],
        *,
        explain: bool = False,
        timings: dict[str, float] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Prepared items of any shapes in, predictions in their order out; items of similar size are read together.

        progress is told how many items each batch had. Raises OutOfMemory with the number of items that fits.
        """
        found: dict[int, Prediction] = {}
        for batch in self._batches(items, in_turn=self.settings.early_exit is not None):
            chosen = [items[number] for number in batch]
            read = or_out_of_memory(
                partial(self._read_together, chosen, explain, timings), partial(self._items_that_fit, chosen)
            )
            found.update(zip(batch, read, strict=True))
            if progress:
                progress(len(batch))
        return [found[number] for number in range(len(items))]

    def _read_together(
        self, items: Sequence[FrameStack], explain: bool = False, timings: dict[str, float] | None = None
    ) -> list[Prediction]:
        frames, mask, sizes = self._padded(items)
        return self.read_batch(frames, mask, sizes, explain=explain, timings=timings)

    def _items_that_fit(self, items: Sequence[FrameStack]) -> str:
        halves = [len(items) >> halved for halved in range(1, len(items).bit_length())]
        fits = largest_that_fits(lambda count: self._read_together(items[:count]), halves)
        if fits is None:
            return "not even one item fits in memory: give fewer frames an item, or choose a smaller recognizer"
        return f"{len(items)} items at once do not fit in memory, and {fits} do: give at most {fits} at a time"

    @torch.inference_mode()
    def embed(self, items: Sequence[FrameStack]) -> list[Embedding]:
        """The encoder's features of prepared items, in their order."""
        found: dict[int, Embedding] = {}
        for batch in self._batches(items):
            frames, mask, sizes = self._padded([items[number] for number in batch])
            memory = self._encode(frames, mask.to(self.device), sizes)
            # Only where every frame is an item of its own can parts of a frame be padding.
            seen = None if self.recognizer.reads_frames_together else memory.mask
            features = memory.frame_tokens.float().cpu()  # (N, S, D)
            rows = (
                (tokens if seen is None else tokens[seen[row].cpu()]).numpy() for row, tokens in enumerate(features)
            )
            for number, count in zip(batch, mask.sum(1).tolist(), strict=True):
                patches = tuple(next(rows) for _ in range(count))
                found[number] = Embedding(np.concatenate(patches).mean(0), patches)
        return [found[number] for number in range(len(items))]

    @torch.inference_mode()
    def encode(self, items: Sequence[FrameStack]) -> list[tuple[list[int], Encoded]]:
        """The batches in which items are read, encoded: the numbers of each one's items, and what is known of them."""
        batches = []
        for batch in self._batches(items):
            frames, mask, sizes = self._padded([items[number] for number in batch])
            memory = self._encode(frames, mask.to(self.device), sizes)
            batches.append(
                (batch, Encoded(memory, mask.sum(1).tolist(), legibility(frames[mask], sizes[mask]).tolist()))
            )
        return batches

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> list[Prediction]:
        """What the items of an encoded batch say under this engine's settings."""
        started = perf_counter()
        if self.settings.early_exit:
            answers = self._in_turn(encoded.counts, encoded.looks, partial(frames_of, encoded.memory))
        else:
            windows = self._windows(encoded.counts)
            if windows is not None:  # here all frames are encoded, not only those that windows have
                windows = replace(windows, rows=windows.read.nonzero().squeeze(1)[windows.rows])
            answers = self._answers(encoded.memory, encoded.counts, windows, explain=False)
        stages = {"search": _milliseconds(started)}
        return self._predictions(answers, stages)

    def _batches(self, items: Sequence[FrameStack], *, in_turn: bool = False) -> Iterator[list[int]]:
        most = MAX_PIXELS if self.device.type == "cuda" else MAX_PIXELS_ON_CPU
        shapes = [item.shape for item in items]
        if in_turn:
            # Rounds encode a window of each item, and small batches of frames take longer each; pixels are held of all.
            once = WINDOWS_AT_ONCE * (self.settings.window_frames or 1)
            shapes = [(max(min(count, once), ceil(count / HELD)), high, wide) for count, high, wide in shapes]
        return batches_of_similar_size(shapes, most)

    def _padded(self, items: Sequence[FrameStack]) -> tuple[Tensor, Tensor, Tensor]:
        frames, mask, sizes = pad_stacks(items, self.processor.padding)
        return torch.from_numpy(frames), torch.from_numpy(mask), torch.from_numpy(sizes)

    def _encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None) -> Memory:
        pixels = self.processor.normalise(frames.to(self.device), getattr(torch, self.precision))
        return self.recognizer.encode(pixels, frame_mask, None if sizes is None else sizes.to(self.device))

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
        if self.settings.early_exit:
            return self._read_in_turn(frames, frame_mask.cpu(), sizes, timings or {})
        windows = self._windows(frame_mask.sum(1).tolist())
        if windows is not None:
            # Frames that no window has need not be encoded.
            frame_mask = frame_mask.masked_scatter(frame_mask, windows.read.to(self.device))
        memory = self._encode(frames, frame_mask, sizes)
        encoded = perf_counter()
        answers = self._answers(memory, frame_mask.sum(1).tolist(), windows, explain)
        stages = {**(timings or {}), "encode": (encoded - started) * 1e3, "search": _milliseconds(encoded)}
        return self._predictions(answers, stages)

    def _answers(
        self, memory: Memory, counts: list[int], windows: WindowBatch | None, explain: bool
    ) -> list[tuple[list[Hypothesis], list[Ballot]]]:
        """The n-best list of every item and who voted for it; counts: how many frames each item has."""
        if windows is not None:
            rows, mask = windows.rows.to(self.device), windows.mask.to(self.device)
            found = self._hypotheses(self.recognizer.regroup(memory, rows, mask))
            by_item = _grouped(found, [len(item) for item in windows.items])
            return [self._vote(readings, item) for item, readings in zip(windows.items, by_item, strict=True)]
        found = self._hypotheses(memory)
        if not self.recognizer.reads_frames_together:
            return [self._vote(frames) for frames in _grouped(found, counts)]
        if not explain:
            return [(n_best, []) for n_best in found]
        each = torch.arange(len(memory.frame_tokens), device=self.device).unsqueeze(1)
        alone = self._hypotheses(self.recognizer.regroup(memory, each, torch.ones_like(each, dtype=torch.bool)))
        by_item = _grouped(alone, counts)
        return [(n_best, self._vote(frames)[1]) for n_best, frames in zip(found, by_item, strict=True)]

    def _read_in_turn(
        self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None, timings: dict[str, float]
    ) -> list[Prediction]:
        """Early exit over pixels: frames that are never asked for are never encoded."""
        started, encoding = perf_counter(), 0.0
        frames, sizes = frames[frame_mask], None if sizes is None else sizes[frame_mask]  # (N, 3, H, W), (N, 2)

        def encode(numbers: list[int]) -> Memory:
            nonlocal encoding
            since = perf_counter()
            chosen = torch.tensor(numbers)
            alone = torch.ones(len(numbers), 1, dtype=torch.bool, device=self.device)
            shapes = None if sizes is None else sizes[chosen].unsqueeze(1)
            memory = self._encode(frames[chosen].unsqueeze(1), alone, shapes)
            encoding += _milliseconds(since)
            return memory

        counts = frame_mask.sum(1).tolist()
        windows = self._windows(counts)
        some = torch.ones(len(frames), dtype=torch.bool) if windows is None else windows.read
        looks = torch.zeros(len(frames))
        looks[some] = legibility(frames[some], None if sizes is None else sizes[some]).cpu()
        answers = self._in_turn(counts, looks.tolist(), encode)
        stages = {**timings, "encode": encoding, "search": _milliseconds(started) - encoding}
        return self._predictions(answers, stages)

    def _in_turn(
        self, counts: list[int], looks: list[float], encode: Callable[[list[int]], Memory]
    ) -> list[tuple[list[Hypothesis], list[Ballot]]]:
        found = read_in_turn(self.recognizer, self.settings, self._rules, counts, looks, encode, self._hypotheses)
        return [self._vote(readings, windows) for windows, readings in found]

    def _windows(self, counts: list[int]) -> WindowBatch | None:
        if not self.settings.window_frames:
            return None
        return rows_of_windows(counts, self.settings.windows, self.settings.window_frames)

    def _vote(
        self, readings: Sequence[Sequence[Hypothesis]], windows: Sequence[Sequence[int]] | None = None
    ) -> tuple[list[Hypothesis], list[Ballot]]:
        """What the frames or the windows of one item say together, and a ballot each."""
        ranked, weights = vote(readings, self._rules)
        return ranked, ballots(readings, weights) if windows is None else window_ballots(windows, readings, weights)

    @property
    def _rules(self) -> VoteRules:
        settings = self.settings
        return VoteRules(settings.vote, settings.vote_floor, length_priors=settings.length_priors, segment=graphemes)

    def _hypotheses(self, memory: Memory) -> list[list[Hypothesis]]:
        found = search(self.recognizer, memory, self.settings, self._scorer)
        return [[self._text(hypothesis) for hypothesis in item] for item in found]

    def _text(self, found: TokenHypothesis) -> Hypothesis:
        text, pieces = self.codec.decode(found.tokens), self.codec.pieces(found.tokens)
        return Hypothesis(text, found.log_prob, found.token_log_probs, pieces)

    def _predictions(
        self, answers: Sequence[tuple[list[Hypothesis], list[Ballot]]], stages: dict[str, float]
    ) -> list[Prediction]:
        started = perf_counter()
        lists = [n_best for n_best, _ in answers]
        if self._corrector is not None:
            lists = correct_all(lists, self._corrector)
            stages = {**stages, "correct": _milliseconds(started)}
        return [
            conclude(n_best, self.settings, votes=tuple(votes), timings=dict(stages), provenance=self.provenance)
            for n_best, (_, votes) in zip(lists, answers, strict=True)
        ]


def prepare_frames(
    frames: Sequence[bytes], processors: Sequence[ImageProcessor], *, name: str
) -> tuple[FrameStack, ...]:
    """The encoded frames of one item, decoded once and made ready by each processor. Raises ImageError, ValueError."""
    if not frames:
        raise ValueError(f"{name} has no frames: give at least one image")
    named = [(f"{name}, frame {number}" if len(frames) > 1 else name, data) for number, data in enumerate(frames)]
    images = [decode_image(data, name=label) for label, data in named]
    return tuple(stack_frames([processor(image) for image in images], processor.padding) for processor in processors)


def conclude(n_best: Sequence[Hypothesis], settings: DecodeSettings, **rest: Any) -> Prediction:
    """The answer that follows from what was read, voted for and corrected; rest: the other fields of a prediction."""
    n_best = calibrate(n_best, settings.calibration)
    best = n_best[0]
    confidence = exp(best.log_prob)
    return Prediction(
        text=best.text,
        confidence=confidence,
        # A corrected text stands before the list that was read, which it does not shorten.
        n_best=tuple(n_best[: settings.n_best + isinstance(best, CorrectedHypothesis)]),
        abstained=confidence < settings.abstain_below,
        **rest,
    )


def _check(recognizer: Recognizer, settings: DecodeSettings) -> None:
    kind = type(recognizer).__name__
    if settings.window_frames and not recognizer.reads_frames_together:
        raise ValueError(
            f"windows of {settings.window_frames} frames need a recognizer that reads frames together; {kind} reads every "
            "frame alone and all of them vote: choose a fusion, or leave out windows and window_frames"
        )
    if settings.early_exit and recognizer.reads_frames_together and not settings.window_frames:
        raise ValueError(
            f"{kind} reads a tracklet whole, which leaves nothing to exit from: set windows and window_frames, or leave "
            "early_exit out"
        )


def _grouped(found: list[list[Hypothesis]], counts: list[int]) -> list[list[list[Hypothesis]]]:
    rows = iter(found)
    return [[next(rows) for _ in range(count)] for count in counts]


def _milliseconds(since: float) -> float:
    return (perf_counter() - since) * 1e3
