"""The validation suite: every lever of inference on the same items, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from glyphrun.bundle import parse_manifest
from glyphrun.data.sample import iterate_samples
from glyphrun.decoding.settings import DecodeSettings, VoteMethod
from glyphrun.sweeps.decode_settings import RANKING, why_not_averaged
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.points import DecodePoint, MemberVote
from glyphrun.sweeps.readers import Known, own_of

QUICK_ITEMS = 50
WIDTHS = (3, 5, 7)
EXITS = ("decided", 0.9)  # when the rest cannot change the answer any more, and when it hardly will
KEPT = {"windows", "window_frames", "vote", "vote_floor", "vote_least", "length_priors", "calibration"}


def suite_points(
    readers: Mapping[str, Path],
    corrections: Mapping[str, dict[str, Any]],
    *,
    tracklets: bool = False,
    quick: bool = False,
) -> tuple[list[DecodePoint], list[str]]:
    """The settings of the suite, and sentences about levers that the readers do not have.

    corrections: settings by what they are called. tracklets: whether an item may have several frames, whose reading can
    exit early. With one reader there is no vote of checkpoints. quick: beams and votes alone. The first reader tells
    which searches there are; each has windows, votes of frames and calibration of its own.
    """
    first, *_ = readers
    known, everyone, alone = own_of(readers), tuple(readers), (first,)
    generates = known.kinds[first] != RANKING
    plain: dict[str, Any] = {"search": "greedy"}
    wide = {"search": "beam", "width": 5, "n_best": 5} if generates else plain
    without: list[str] = []
    points = [_point(known, alone, plain)]
    if generates:
        points += [_point(known, alone, {"search": "beam", "width": width, "n_best": width}) for width in WIDTHS]
    else:
        without.append(
            f"{first} ranks every answer that there is, so that a beam of any width reads what greedy reading does"
        )
    if not quick:
        sampled = {"search": "sample", "temperature": 0.7, "samples": 5, "n_best": 5}
        points.append(_point(known, alone, sampled))
    if len(everyone) > 1:
        votes: list[MemberVote] = [*get_args(VoteMethod)]
        if why_not := why_not_averaged(everyone, known.kinds, known.inputs):
            without.append(why_not)
        else:
            votes.append("average")
        points += [_point(known, everyone, wide, vote) for vote in votes]
    if quick:
        if corrections:
            without.append("a quick validation tries beams and votes alone, so nothing is corrected")
        return points, without
    if tracklets and _leaves_something(readers[first], known.own[first]):
        points += [_point(known, alone, {**plain, "early_exit": exit}) for exit in EXITS]
        points += [_point(known, alone, {**wide, "early_exit": exit}) for exit in EXITS if generates]
    elif tracklets:
        without.append(
            f"{first} reads a tracklet whole, so that there is nothing to exit from: its bundle has no windows"
        )
    for correction in corrections.values():
        if correction.get("lm_fusion") == "shallow" and not generates:
            continue
        if generates and "lexicon" in correction and "lm_fusion" not in correction:
            # A list of one reading leaves a language model no choice, a word list finds words beside it.
            points.append(_point(known, alone, {**plain, "correction": correction}))
        corrected = {**wide, "correction": correction}
        points.append(_point(known, alone, corrected))
        if len(everyone) > 1:
            points.append(_point(known, everyone, corrected, "mbr"))
    return points, without


def available_corrections(lexicon: Path | None, confusions: Path | None, lm: Path | None) -> dict[str, dict[str, Any]]:
    """Every correction that can be had from some files: alone, and together. Raises ExperimentError for one that is not there."""
    for option, path in (("lexicon", lexicon), ("confusions", confusions), ("lm", lm)):
        if path is not None and not path.exists():
            raise ExperimentError(f"--{option}: there is no {path}")
    if confusions is not None and lexicon is None:
        raise ExperimentError("--confusions tell which words of a lexicon were misread: give --lexicon too")
    words: dict[str, Any] = {}
    if lexicon is not None:
        words = {"lexicon": str(lexicon.absolute())}
        if confusions is not None:
            words["confusions"] = str(confusions.absolute())
    models: dict[str, dict[str, Any]] = {}
    if lm is not None:
        model = {"language_model": str(lm.absolute())}
        models["language model, reranking"] = model
        if lm.suffix in (".arpa", ".binary"):
            models["language model in the beam"] = {**model, "lm_fusion": "shallow"}
    if not words:
        return models
    both = {f"lexicon and {name}": {**words, **model} for name, model in models.items()}
    return {"lexicon": words, **models, **both}


def has_tracklets(dataset: Path, split: str) -> bool:
    """Whether some item of a split has several frames. Raises DatasetError."""
    return any(len(sample.frames) > 1 for sample in iterate_samples(dataset, split))


def _point(
    known: Known, members: tuple[str, ...], changes: dict[str, Any], vote: MemberVote | None = None
) -> DecodePoint:
    kept = {name: known.own[name].model_dump(include=KEPT, mode="json") for name in members}
    ways = {name: DecodeSettings.model_validate({**own, **changes}) for name, own in kept.items()}
    return DecodePoint.of(ways, vote)


def _leaves_something(bundle: Path, own: DecodeSettings) -> bool:
    """Whether an item can be answered before all of its frames are read."""
    return parse_manifest(bundle).recognizer.get("fusion", "none") == "none" or own.window_frames is not None
