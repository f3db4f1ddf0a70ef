"""Import the SoccerNet jersey layout: {split}/images/{tracklet}/{tracklet}_{frame}.jpg and {split}/{split}_gt.json.

The JSON maps each tracklet to its number; -1, a number that cannot be seen, becomes the empty text.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from glyphrun.data.importers.files import SourceFiles
from glyphrun.data.importers.rows import ImportRow
from glyphrun.data.sample import DatasetError

_FRAME = re.compile(r"(?P<split>[^/]+)/images/(?P<tracklet>[^/]+)/[^/]*?(?P<frame>\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_TRUTH = re.compile(r"(?P<split>[^/]+)/(?P=split)_gt\.json")


def read_soccernet(files: SourceFiles, split: str | None = None) -> Iterator[ImportRow]:
    """A row for every tracklet, split by split; `split` is not needed, since the folders name it.

    A split without a ground truth, such as the challenge, has no texts. Raises DatasetError when the layout is
    another one or a ground truth cannot be read.
    """
    frames: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    truths: dict[str, str] = {}
    for name in files.names():
        if found := _FRAME.fullmatch(name):
            frames[found["split"]][found["tracklet"]].append((int(found["frame"]), name))
        elif found := _TRUTH.fullmatch(name):
            truths[found["split"]] = name
    if not frames:
        raise DatasetError(f"{files.path} has no SPLIT/images/TRACKLET/TRACKLET_FRAME.jpg; name the folder above them.")
    for folder in sorted(set(frames) | set(truths)):
        truth = truths.get(folder)
        numbers = _numbers(truth, files.read(truth)) if truth else None
        for tracklet in sorted(set(frames[folder]) | set(numbers or {}), key=_natural):
            text, fault = _text(tracklet, numbers)
            ordered = tuple(name for _, name in sorted(frames[folder].get(tracklet, [])))
            source = f"{truth or folder + '/images'} tracklet {tracklet}"
            if not ordered:
                fault = f"There are no frames in {folder}/images/{tracklet}."
            yield ImportRow(
                sample_id=f"{folder}/{tracklet}",
                files=ordered,
                text=text,
                split=folder,
                source=source,
                meta={"tracklet": tracklet},
                reason=f"{source}: {fault}" if fault else None,
            )


def _natural(tracklet: str) -> tuple[int, str]:
    return (int(tracklet) if tracklet.isdecimal() else -1, tracklet)


def _numbers(name: str, data: bytes) -> dict[str, Any]:
    try:
        numbers = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"{name} is not JSON: {error}.") from error
    if not isinstance(numbers, dict):
        raise DatasetError(f"{name} is an object of tracklet: number.")
    return numbers


def _text(tracklet: str, numbers: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """The text, and what is wrong with the number."""
    if numbers is None:
        return None, None
    if tracklet not in numbers:
        return None, "It is not in the ground truth."
    number = numbers[tracklet]
    try:
        value = int(number)
    except (TypeError, ValueError):
        return None, f"Its number is {number!r}; numbers are -1 to 99."
    if value == -1:
        return "", None
    if not 0 <= value <= 99:
        return str(number), f"Its number is {number}; numbers are -1 to 99."
    # As a string "00" stays what it is; "0" and "00" are different shirts.
    return str(number), None
