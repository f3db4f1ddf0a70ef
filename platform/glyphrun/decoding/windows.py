"""Windows: a long tracklet is read as several short stretches of it, which then vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.decoding.vote import Ballot, Hypothesis, ballots
from glyphrun.models.recognizer import Recognizer

Row = TypeVar("Row")


def window_rows(frames: int, windows: int, size: int) -> list[list[int]]:
    """The frames of each window: ``size`` consecutive ones, evenly spread from the tracklet's first frames to its last.

    A single window is the tracklet's middle. No two windows are the same: a tracklet of few frames has fewer windows,
    and one of at most ``size`` frames has one with all of them.
    """
    if min(frames, windows, size) < 1:
        raise ValueError(f"{windows} windows of {size} frames cannot be cut from {frames}: each must be at least 1")
    spare = max(frames - size, 0)
    count = min(windows, spare + 1)
    starts = [number * spare // (count - 1) for number in range(count)] if count > 1 else [spare // 2]
    return [list(range(start, min(start + size, frames))) for start in starts]


@dataclass(frozen=True)
class WindowBatch:
    """The windows of a batch, as a recognizer's ``regroup`` takes them.

    items: the windows of each item, each a list of frame numbers counted within the item.
    read: (N,) bool over the frames of all items in order, True where some window has the frame.
    rows: (G, W) long, the frames of each of the G windows of all items, counted among those that are read.
    mask: (G, W) bool, True where a window has a frame.
    """

    items: list[list[list[int]]]
    read: Tensor
    rows: Tensor
    mask: Tensor


def check_windows(settings: DecodeSettings, recognizer: Recognizer) -> None:
    """Raises ValueError for windows of frames that are read alone, and for what needs votes of a tracklet that is read whole."""
    kind = type(recognizer).__name__
    if settings.window_frames and not recognizer.reads_frames_together:
        raise ValueError(
            f"windows of {settings.window_frames} frames need a recognizer that reads frames together; {kind} reads every "
            "frame alone and all of them vote: choose a fusion, or leave out windows and window_frames"
        )
    if settings.vote_least and recognizer.reads_frames_together and not settings.window_frames:
        raise ValueError(
            f"{kind} reads a tracklet whole, so that no votes add up to vote_least: set windows and window_frames, or take "
            "abstain_below"
        )
    if settings.early_exit and recognizer.reads_frames_together and not settings.window_frames:
        raise ValueError(
            f"{kind} reads a tracklet whole, which leaves nothing to exit from: set windows and window_frames, or leave "
            "early_exit out"
        )


def rows_of_windows(counts: Sequence[int], windows: int, size: int) -> WindowBatch:
    """The windows of items with so many frames each. Raises ValueError for an item without frames."""
    items = [window_rows(count, windows, size) for count in counts]
    read = torch.zeros(sum(counts), dtype=torch.bool)
    starts = [sum(counts[:number]) for number in range(len(counts))]
    placed = [[start + frame for frame in window] for start, item in zip(starts, items, strict=True) for window in item]
    rows, mask = rows_and_mask(placed)
    read[rows[mask]] = True
    rows[mask] = (read.cumsum(0) - 1)[rows[mask]]
    return WindowBatch(items, read, rows, mask)


def windows_of(settings: DecodeSettings, counts: Sequence[int]) -> WindowBatch | None:
    """The windows that the settings ask for, None for tracklets that are read whole or frame by frame."""
    return rows_of_windows(counts, settings.windows, settings.window_frames) if settings.window_frames else None


def rows_and_mask(windows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Frames of windows as ``regroup`` takes them: (G, W) long, and (G, W) bool, True where a window has a frame."""
    longest = max(map(len, windows), default=0)
    mask = torch.tensor([[place < len(window) for place in range(longest)] for window in windows]).view(-1, longest)
    rows = torch.zeros(mask.shape, dtype=torch.long)
    rows[mask] = torch.tensor([frame for window in windows for frame in window], dtype=torch.long)
    return rows, mask


def window_ballots(
    windows: Sequence[Sequence[int]], readings: Sequence[Sequence[Hypothesis]], weights: Sequence[float]
) -> list[Ballot]:
    """A ballot for each window, which names its stretch; readings: n-best lists, one a window."""
    return [
        replace(ballot, frame=window[0], frames=len(window))
        for ballot, window in zip(ballots(readings, weights), windows, strict=True)
    ]


def grouped(readings: Sequence[Row], counts: Sequence[int]) -> list[list[Row]]:
    """What was read of all items in order → what was read of each; counts: how many frames or windows each has."""
    rows = iter(readings)
    return [[next(rows) for _ in range(count)] for count in counts]
