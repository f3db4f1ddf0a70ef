"""How much of the scores each searched setting explains, beside what chance would seem to explain.

An additive model is fitted to the scores: of each number that was searched a line and a parabola over its ranks, of each
choice a constant a value. The variance of a setting's part over that of the scores is its share: the main effects of a
functional analysis of variance (Hooker 2007), which leave out what settings do only together. Then the values of that
setting alone are dealt out anew among the configurations, many times, and the model is fitted again: what such a setting
explains is chance. Few trials leave much to chance, and then most shares are within it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FEWEST = 8  # configurations under which nothing is said
DEALS = 1000
LEVEL = 0.05  # how often a setting that does nothing may pass, shared among all settings
REACHED = 0.75  # of the trials with a score, how many must have reached the step at which they are compared
FAMILY = "family"


@dataclass(frozen=True)
class Share:
    """A setting's share of the variance and the upper end of what chance gives, both 0..1.

    searched: in how many configurations; best: the value that does best, None where the share is within chance.
    """

    setting: str
    share: float
    chance: float
    searched: int
    best: Any


@dataclass(frozen=True)
class Importance:
    """Shares, the largest first, of exact match on val after ``step`` optimizer steps.

    reached: trials that came so far, of ``scored`` ones; configurations: how many those are when repeats with other seeds
    are averaged. reason: why there are no shares, or None.
    """

    step: int
    reached: int
    scored: int
    configurations: int
    shares: tuple[Share, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As results.json has it."""
        return asdict(self)


def importance(trials: Sequence[Mapping[str, Any]], seed: int = 0) -> Importance:
    """Of the rows of a leaderboard: each with ``family``, ``changes`` (what was sampled) and ``curve``."""
    curves = [(trial, trial["curve"]) for trial in trials if trial["curve"]]
    if not curves:
        return Importance(0, 0, 0, 0, reason="no trial has a score")
    step = _common_step([curve for _, curve in curves])
    scores: dict[str, list[float]] = {}
    points: dict[str, dict[str, Any]] = {}
    for trial, curve in curves:
        if curve[-1]["step"] >= step:
            point = {FAMILY: trial["family"], **trial["changes"]}
            key = _text(point)
            points[key] = point
            scores.setdefault(key, []).append([one for one in curve if one["step"] <= step][-1]["exact"])
    counts = (step, sum(map(len, scores.values())), len(curves), len(points))
    values = np.array([np.mean(scores[key]) for key in points])
    settings = _searched(list(points.values()))
    reason = None
    if len(points) < FEWEST:
        reason = f"{len(points)} configurations are too few: at least {FEWEST} are needed"
    elif not settings:
        reason = "nothing was searched: all configurations are alike"
    elif values.std() < 1e-9:
        reason = "all configurations have the same score"
    if reason:
        return Importance(*counts, reason=reason)
    return Importance(*counts, shares=_shares(settings, values, np.random.default_rng(seed)))


@dataclass(frozen=True)
class _Setting:
    """A setting over N configurations: values, None where it was not searched; columns, (N, C), 0 there.

    present: the numbers of the configurations that have it.
    """

    name: str
    values: list[Any]
    columns: np.ndarray
    present: np.ndarray


def _searched(points: Sequence[Mapping[str, Any]]) -> list[_Setting]:
    settings = []
    for name in dict.fromkeys(name for point in points for name in point):
        present = np.array([number for number, point in enumerate(points) if name in point])
        known = [points[number][name] for number in present]
        if len(set(map(_text, known))) > 1:
            columns = np.zeros((len(points), (part := _columns(known)).shape[1]))
            columns[present] = part
            settings.append(_Setting(name, [point.get(name) for point in points], columns, present))
    return settings


def _columns(known: Sequence[Any]) -> np.ndarray:
    """Of M values, (M, C): each column has the mean 0 and the variance 1."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        found, ranks = np.unique(np.array(known, np.float64), return_inverse=True)
        parts = [ranks, (ranks - ranks.mean()) ** 2][: len(found) - 1]
    else:
        texts = [_text(value) for value in known]
        parts = [np.array([text == name for text in texts]) for name in sorted(set(texts))]
    columns = np.stack(parts, axis=1).astype(np.float64)
    columns -= columns.mean(axis=0)
    return columns / np.maximum(columns.std(axis=0), 1e-12)


def _shares(settings: Sequence[_Setting], values: np.ndarray, rng: np.random.Generator) -> tuple[Share, ...]:
    scores = (values - values.mean()) / values.std()
    whole = np.concatenate([setting.columns for setting in settings], axis=1)
    found, first = [], 0
    for setting in settings:
        place = slice(first, first := first + setting.columns.shape[1])
        parts = setting.columns @ _fit(whole[None], scores)[0, place]
        dealt = np.repeat(whole[None], DEALS, axis=0)  # (deals, N, columns)
        orders = rng.permuted(np.repeat(setting.present[None], DEALS, axis=0), axis=1)
        dealt[:, setting.present, place] = setting.columns[orders]
        chance = np.einsum("dnc,dc->dn", dealt[:, :, place], _fit(dealt, scores)[:, place]).var(axis=1)
        end = float(np.quantile(chance, 1 - LEVEL / len(settings)))
        best = setting.values[setting.present[int(parts[setting.present].argmax())]]
        share = float(parts.var())
        found.append(Share(setting.name, share, end, len(setting.present), best if share > end else None))
    return tuple(sorted(found, key=lambda share: -share.share))


def _fit(columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Ridge regression, a column's weight as if one more configuration said 0: (D, N, C) and (N,) give (D, C)."""
    squares = columns.transpose(0, 2, 1) @ columns + np.eye(columns.shape[2])
    return np.linalg.solve(squares, (columns.transpose(0, 2, 1) @ scores)[..., None])[..., 0]


def _common_step(curves: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """The last step with a score that enough trials have reached."""
    last = sorted((int(curve[-1]["step"]) for curve in curves), reverse=True)
    reached = last[int(np.ceil(REACHED * len(last))) - 1]
    return max(int(one["step"]) for curve in curves for one in curve if one["step"] <= reached)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
