"""Transfer: trained weights into a recognizer of another charset, length, image or patch size, with an account of each tensor.

A subset of the characters and a shorter length need nothing that the weights do not have, so a digit reader out of a
94-character one is kept whole. Everything else has to be allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.torch_files import WeightsError
from glyphrun.models.weights import PUBLISHED, PUBLISHED_CHARSET, by_plain_name

Mismatch = Literal["fail", "extend", "replace"]
Grid = tuple[int, int]
Action = Literal["kept", "resized", "new", "dropped"]

_POSITIONS, _PATCHES = "encoder.pos_embed", "encoder.patch_embed.proj.weight"
# How many rows there are beside those of token 0 (the end, or a blank) and of the characters.
_MARKS = {"head.weight": 0, "head.bias": 0, "text_embed.embedding.weight": 2}
_NAMED = 8  # how many of a long list an error or a note names


@dataclass(frozen=True)
class Transferred:
    """What became of a tensor. new: as the recognizer was built; resized: extended or interpolated; a shape is None if absent."""

    name: str
    action: Action
    from_shape: tuple[int, ...] | None
    to_shape: tuple[int, ...] | None
    note: str = ""


@dataclass(frozen=True)
class _Fit:
    """How a tensor of the recognizer can be had: value None leaves it as built; needs None asks for no allowance."""

    value: Tensor | None
    note: str = ""
    needs: Literal["extend", "replace", "another recognizer"] | None = None


def transfer(
    recognizer: Recognizer,
    tensors: dict[str, Tensor],
    *,
    source_charset: str | None,
    charset: str,
    mismatch: Mismatch = "fail",
    source_image: tuple[int, int] | None = None,
) -> list[Transferred]:
    """Copy weights into a recognizer and say what became of every tensor: the recognizer's in order, then what it dropped.

    Rows of characters go by character; source_charset None takes the published charsets by their 94 or 36 characters;
    charset "" is a recognizer of subwords. source_image: height and width that the weights were trained at, needed where
    the number of their positions leaves it open.

    mismatch: «fail» allows what the weights cover (fewer characters, another order of them, fewer positions).
    «extend» also allows rows, positions and modules that they do not have, which stay as the recognizer was built, and
    interpolates position and patch embeddings. «replace» keeps the encoder as «extend» does and leaves everything else
    that does not fit as built, whole. Raises WeightsError, with the recognizer unchanged.
    """
    state, found = by_plain_name(recognizer.state_dict()), by_plain_name(tensors)
    shared = [name for name in state if name in found]
    if not shared:
        raise WeightsError(
            f"the weights are of another kind of recognizer: no name of theirs ({_some(found)}) is one of "
            f"this recognizer's ({_some(state)})"
        )
    vision = tuple(f"{part}." for part in recognizer.parts()["vision"])
    grids = _grids(recognizer, found, source_image)
    lettered = [name for name in shared if name in _MARKS] if charset else []
    rows = _row_names({name: state[name] for name in lettered}, charset, "the recognizer")
    source_rows = _row_names({name: found[name] for name in lettered}, source_charset, "the weights")
    fits: dict[str, _Fit] = {}
    for name, target in state.items():
        letters = (rows[name], source_rows[name]) if name in rows else None
        fit = _fit(name, found.get(name), target, letters, grids)
        if name.startswith(vision):
            fit = replace(fit, needs="another recognizer") if fit.needs == "replace" else fit
        elif mismatch == "replace" and fit.value is not None and fit.needs:
            fit = replace(fit, value=None, note=f"all of it: {fit.note}")
        fits[name] = fit
    _refuse(fits, mismatch)
    with torch.no_grad():
        for name, fit in fits.items():
            if fit.value is not None:
                state[name].copy_(fit.value)
    outcome = [_outcome(name, fit, found.get(name), state[name]) for name, fit in fits.items()]
    return outcome + [Transferred(name, "dropped", (*found[name].shape,), None) for name in found if name not in state]


def transfer_table(rows: Iterable[Transferred]) -> Table:
    """How many tensors were kept, resized, made new and dropped, and by name each that was not kept as it was."""
    rows = list(rows)
    actions = [row.action for row in rows]
    counts = ", ".join(f"{actions.count(action)} {action}" for action in ("kept", "resized", "new", "dropped"))
    table = Table("tensor", "what", "in the weights", "here", "note", title=f"weights: {counts}", title_justify="left")
    for row in rows:
        if row.action != "kept" or row.note:
            shapes = [_shape(shape) for shape in (row.from_shape, row.to_shape)]
            table.add_row(*map(Text, (row.name, row.action, *shapes, row.note)))  # Text: a note may hold a bracket
    return table


def _fit(
    name: str,
    source: Tensor | None,
    target: Tensor,
    letters: tuple[list[str], list[str]] | None,
    grids: tuple[Grid, Grid] | None,
) -> _Fit:
    """How a tensor can be had; letters: what the rows of target and source stand for; grids: of source and target."""
    if source is None:
        return _Fit(None, "not in the weights", "extend")
    if source.ndim == target.ndim and source.is_floating_point() == target.is_floating_point():
        if letters is not None and source.shape[1:] == target.shape[1:]:
            return _by_character(source, target, *letters)
        if name == "pos_queries" and source.shape[2:] == target.shape[2:]:
            return _by_position(source, target)
        if name == _POSITIONS and grids is not None and source.shape[2:] == target.shape[2:]:
            return _by_place(source, *grids)
        if name == _PATCHES and source.shape[:2] == target.shape[:2]:
            return _by_patch(source, target)
    if source.shape != target.shape:
        return _Fit(None, f"{_shape(source.shape)} in the weights, {_shape(target.shape)} here", "replace")
    if source.is_floating_point() != target.is_floating_point():
        return _Fit(None, f"{source.dtype} in the weights, {target.dtype} here", "replace")
    return _Fit(source)


def _outcome(name: str, fit: _Fit, source: Tensor | None, target: Tensor) -> Transferred:
    action: Action = "new" if fit.value is None else "resized" if fit.needs else "kept"
    return Transferred(name, action, None if source is None else (*source.shape,), (*target.shape,), fit.note)


def _refuse(fits: dict[str, _Fit], mismatch: Mismatch) -> None:
    """Raise for what mismatch does not allow, naming the option that would."""
    allowed = {"fail": (), "extend": ("extend",), "replace": ("extend", "replace")}[mismatch]
    refused = {name: fit for name, fit in fits.items() if fit.needs and fit.needs not in allowed}
    needs = {fit.needs for fit in refused.values()}
    if not refused:
        return
    if "another recognizer" in needs:
        refused = {name: fit for name, fit in refused.items() if fit.needs == "another recognizer"}
        remedy = (
            "no option allows this: choose a recognizer whose encoder has the size of the weights', or other weights"
        )
    elif "replace" in needs:
        remedy = "mismatch «replace» allows it and trains them anew; the encoder is kept"
    else:
        remedy = (
            "mismatch «extend» allows it: rows, positions and modules that are not there are trained anew, the rest is "
            "resized; «replace» trains anew all of a tensor outside the encoder that does not fit"
        )
    what = [f"{name} ({fit.note})" for name, fit in refused.items()]
    raise WeightsError(f"the weights do not cover {_some(what)}; {remedy}")


def _row_names(tensors: dict[str, Tensor], charset: str | None, whose: str) -> dict[str, list[str]]:
    """What each row of the tensors that have one for each character stands for; their sizes are held against the charset."""
    counts = {name: len(tensor) - 1 - _MARKS[name] for name, tensor in tensors.items()}
    if charset is None:
        published = {len(known): known for known in (PUBLISHED_CHARSET, PUBLISHED_CHARSET[:36])}
        charset = next((published[count] for count in counts.values() if count in published), "")
    for name, count in counts.items():
        if count != len(charset):
            given = f"the charset given for them has {len(charset)}" if charset else "no published charset has as many"
            raise WeightsError(
                f"{name} of {whose} has rows for {count} characters, and {given}: "
                f"give the charset they were made for, in its order, as weights_charset"
            )
    return {name: ["end", *charset, "begin", "pad"][: 1 + len(charset) + _MARKS[name]] for name in counts}


def _by_character(source: Tensor, target: Tensor, rows: list[str], source_rows: list[str]) -> _Fit:
    if rows == source_rows:
        return _Fit(source)
    place = {row: number for number, row in enumerate(source_rows)}
    kept = [number for number, row in enumerate(rows) if row in place]
    value = target.clone()
    value[kept] = source[[place[rows[number]] for number in kept]].to(value)
    added = [f"{row!r} U+{ord(row):04X}" for row in rows if row not in place]
    if added:
        return _Fit(value, f"{len(added)} new of {len(rows)} rows: {_some(added)}", "extend")
    return _Fit(value, f"{len(kept)} of {len(source_rows)} rows, by character")


def _by_position(source: Tensor, target: Tensor) -> _Fit:
    had, wanted = source.shape[1], target.shape[1]
    if had == wanted:
        return _Fit(source)
    if had > wanted:
        return _Fit(source[:, :wanted], f"the first {wanted} of {had} positions")
    value = target.clone()
    value[:, :had] = source.to(value)
    return _Fit(value, f"positions {had + 1} to {wanted} are new", "extend")


def _by_place(source: Tensor, source_grid: Grid, grid: Grid) -> _Fit:
    if source_grid == grid:
        return _Fit(source)
    from timm.layers import resample_abs_pos_embed  # here: timm takes seconds to import, and few weights change size

    value = resample_abs_pos_embed(source.float(), list(grid), list(source_grid), num_prefix_tokens=0)
    return _Fit(value, f"interpolated from {_shape(source_grid)} to {_shape(grid)} places", "extend")


def _by_patch(source: Tensor, target: Tensor) -> _Fit:
    """The weights that give a resized patch the feature of the original, as nearly as can be (arXiv 2212.08013)."""
    if source.shape == target.shape:
        return _Fit(source)
    from timm.layers import resample_patch_embed  # here, as above

    sizes = [_shape(tensor.shape[2:]) for tensor in (source, target)]
    value = resample_patch_embed(source.float(), list(target.shape[2:]))
    return _Fit(value, f"resampled from {sizes[0]} to {sizes[1]} pixels", "extend")


def _grids(
    recognizer: Recognizer, found: dict[str, Tensor], source_image: tuple[int, int] | None
) -> tuple[Grid, Grid] | None:
    """Rows and columns of the places that the weights' encoder and the recognizer's have; None if they have no grid."""
    encoder = getattr(recognizer.settings, "encoder", None)
    positions, patches = found.get(_POSITIONS), found.get(_PATCHES)
    if not isinstance(encoder, EncoderSettings) or positions is None or positions.ndim != 3:
        return None
    patch = encoder.patch if patches is None or patches.ndim != 4 else (patches.shape[2], patches.shape[3])
    images = {source_image} if source_image else {encoder.image} | {origin.image for _, origin in PUBLISHED.values()}
    grids = {(image[0] // patch[0], image[1] // patch[1]) for image in images if image}
    fitting = sorted(grid for grid in grids if grid[0] * grid[1] == positions.shape[1])
    if len(fitting) != 1:
        may_be = f"may be rows × columns of {' or '.join(map(_shape, fitting))}" if fitting else "fit no known image"
        why = f"do not fit images of {_shape(source_image)}" if source_image else may_be
        raise WeightsError(
            f"{_POSITIONS}: the weights' {positions.shape[1]} places of {_shape(patch)} pixels {why}: "
            f"give the height and width that they were trained at, as weights_image"
        )
    return fitting[0], (encoder.image[0] // encoder.patch[0], encoder.image[1] // encoder.patch[1])


def _shape(shape: Iterable[int] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape)) or "1"


def _some(names: Iterable[str]) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
