"""The one path from bytes to text.

Evaluation, sweeps, the command line and every served replica read frames through an Engine, so what was measured is what
is served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from glyphrun.batching import MAX_PIXELS, MAX_PIXELS_ON_CPU, batches_of_similar_size, batches_read_in_turn
from glyphrun.decoding.early_exit import read_in_turn
from glyphrun.decoding.replay import Record
from glyphrun.decoding.rescore import Corrector, correct_all
from glyphrun.decoding.scorer import Scorer
from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, VoteRules, ballots, vote
from glyphrun.decoding.windows import WindowBatch, check_windows, grouped, window_ballots, windows_of
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.encoded import Embedding, Encoded, embeddings
from glyphrun.graphemes import graphemes
from glyphrun.images import FrameStack, ImageProcessor, pad_stacks, prepare_frames
from glyphrun.legibility import legibility
from glyphrun.memory import items_that_fit, or_out_of_memory
from glyphrun.models.recognizer import Memory, Recognizer, frames_of
from glyphrun.prediction import Prediction, conclude, spelt
from glyphrun.stopwatch import milliseconds_since
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec


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
        how = self.settings
        check_windows(how, self.recognizer)
        self._rules = VoteRules(
            how.vote, how.vote_floor, length_priors=how.length_priors, segment=graphemes, least=how.vote_least
        )
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
        return self.read_prepared(prepared, explain=explain, timings={"decode": milliseconds_since(started)})

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
                partial(self._read_together, chosen, explain, timings),
                partial(items_that_fit, self._read_together, chosen),
            )
            found.update(zip(batch, read, strict=True))
            if progress:
                progress(len(batch))
        return [found[number] for number in range(len(items))]

    def _read_together(
        self, items: Sequence[FrameStack], explain: bool = False, timings: dict[str, float] | None = None
    ) -> list[Prediction]:
        return self.read_batch(*self._padded(items), explain=explain, timings=timings)

    @torch.inference_mode()
    def embed(self, items: Sequence[FrameStack]) -> list[Embedding]:
        """The encoder's features of prepared items, in their order. Raises OutOfMemory, as reading does."""
        together = self.recognizer.reads_frames_together
        found: dict[int, Embedding] = {}
        for batch, encoded in self._encoded(items):
            found.update(zip(batch, embeddings(encoded, together=together), strict=True))
        return [found[number] for number in range(len(items))]

    @torch.inference_mode()
    def encode(self, items: Sequence[FrameStack]) -> list[tuple[list[int], Encoded]]:
        """The batches in which items are read, encoded: the numbers of each one's items, and what is known of them.

        Raises OutOfMemory, as reading does.
        """
        return list(self._encoded(items))

    @torch.inference_mode()
    def decode(self, encoded: Encoded, *, record: Record | None = None) -> list[Prediction]:
        """What the items of an encoded batch say under this engine's settings.

        record: what a wider beam left of this batch, or what this one is to leave (``decoding.replay``).
        """
        started = perf_counter()
        if self.settings.early_exit:
            answers = self._in_turn(encoded.counts, encoded.looks, partial(frames_of, encoded.memory))
        else:
            windows = windows_of(self.settings, encoded.counts)
            if windows is not None:  # here all frames are encoded, not only those that windows have
                windows = replace(windows, rows=windows.read.nonzero().squeeze(1)[windows.rows])
            answers = self._answers(encoded.memory, encoded.counts, windows, explain=False, record=record)
        return self._predictions(answers, {"search": milliseconds_since(started)})

    def _batches(self, items: Sequence[FrameStack], *, in_turn: bool = False) -> Iterator[list[int]]:
        most = MAX_PIXELS if self.device.type == "cuda" else MAX_PIXELS_ON_CPU
        shapes = [item.shape for item in items]
        if in_turn:
            return batches_read_in_turn(shapes, self.settings.window_frames or 1, most)
        return batches_of_similar_size(shapes, most)

    def _encoded(self, items: Sequence[FrameStack]) -> Iterator[tuple[list[int], Encoded]]:
        for batch in self._batches(items):
            chosen = [items[number] for number in batch]
            encoded = or_out_of_memory(
                partial(self._encoded_together, chosen), partial(items_that_fit, self._encoded_together, chosen)
            )
            yield batch, encoded

    def _encoded_together(self, items: Sequence[FrameStack]) -> Encoded:
        frames, mask, sizes = self._padded(items)
        memory = self._encode(frames, mask.to(self.device), sizes)
        return Encoded(memory, mask.sum(1).tolist(), legibility(frames[mask], sizes[mask]).tolist())

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
        windows = windows_of(self.settings, frame_mask.sum(1).tolist())
        if windows is not None:
            # Frames that no window has need not be encoded.
            frame_mask = frame_mask.masked_scatter(frame_mask, windows.read.to(self.device))
        memory = self._encode(frames, frame_mask, sizes)
        encoded = perf_counter()
        answers = self._answers(memory, frame_mask.sum(1).tolist(), windows, explain)
        stages = {**(timings or {}), "encode": (encoded - started) * 1e3, "search": milliseconds_since(encoded)}
        return self._predictions(answers, stages)

    def _answers(
        self,
        memory: Memory,
        counts: list[int],
        windows: WindowBatch | None,
        explain: bool,
        record: Record | None = None,
    ) -> list[tuple[list[Hypothesis], list[Ballot]]]:
        """The n-best list of every item and who voted for it; counts: how many frames each item has."""
        if windows is not None:
            rows, mask = windows.rows.to(self.device), windows.mask.to(self.device)
            found = self._hypotheses(self.recognizer.regroup(memory, rows, mask), record)
            by_item = grouped(found, [len(item) for item in windows.items])
            return [self._vote(readings, item) for item, readings in zip(windows.items, by_item, strict=True)]
        found = self._hypotheses(memory, record)
        if not self.recognizer.reads_frames_together:
            return [self._vote(frames) for frames in grouped(found, counts)]
        if not explain:
            return [(n_best, []) for n_best in found]
        each = torch.arange(len(memory.frame_tokens), device=self.device).unsqueeze(1)
        alone = self._hypotheses(self.recognizer.regroup(memory, each, torch.ones_like(each, dtype=torch.bool)))
        by_item = grouped(alone, counts)
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
            encoding += milliseconds_since(since)
            return memory

        counts = frame_mask.sum(1).tolist()
        windows = windows_of(self.settings, counts)
        some = torch.ones(len(frames), dtype=torch.bool) if windows is None else windows.read
        looks = torch.zeros(len(frames))
        looks[some] = legibility(frames[some], None if sizes is None else sizes[some]).cpu()
        answers = self._in_turn(counts, looks.tolist(), encode)
        stages = {**timings, "encode": encoding, "search": milliseconds_since(started) - encoding}
        return self._predictions(answers, stages)

    def _in_turn(
        self, counts: list[int], looks: list[float], encode: Callable[[list[int]], Memory]
    ) -> list[tuple[list[Hypothesis], list[Ballot]]]:
        found = read_in_turn(self.recognizer, self.settings, self._rules, counts, looks, encode, self._hypotheses)
        return [self._vote(readings, windows) for windows, readings in found]

    def _vote(
        self, readings: Sequence[Sequence[Hypothesis]], windows: Sequence[Sequence[int]] | None = None
    ) -> tuple[list[Hypothesis], list[Ballot]]:
        """What the frames or the windows of one item say together, and a ballot each."""
        ranked, weights = vote(readings, self._rules)
        return ranked, ballots(readings, weights) if windows is None else window_ballots(windows, readings, weights)

    def _hypotheses(self, memory: Memory, record: Record | None = None) -> list[list[Hypothesis]]:
        found = search(self.recognizer, memory, self.settings, self._scorer, record)
        return [[spelt(hypothesis, self.codec) for hypothesis in item] for item in found]

    def _predictions(
        self, answers: Sequence[tuple[list[Hypothesis], list[Ballot]]], stages: dict[str, float]
    ) -> list[Prediction]:
        started = perf_counter()
        lists = [n_best for n_best, _ in answers]
        if self._corrector is not None:
            lists = correct_all(lists, self._corrector)
            stages = {**stages, "correct": milliseconds_since(started)}
        return [
            conclude(n_best, self.settings, votes=tuple(votes), timings=dict(stages), provenance=self.provenance)
            for n_best, (_, votes) in zip(lists, answers, strict=True)
        ]
