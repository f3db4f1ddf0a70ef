"""The validation suite: every lever of inference on the same items, alone and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from glyphrun.bundle import read_manifest
from glyphrun.decoding.settings import CorrectionSettings, DecodeSettings, VoteMethod
from glyphrun.sweeps.decode_settings import DecodePoint

QUICK_ITEMS = 50
WIDTHS = (3, 5, 7)


def suite_points(
    readers: Mapping[str, Path], corrections: Mapping[str, dict[str, Any]], *, quick: bool = False
) -> list[DecodePoint]:
    """The settings of the suite for bundles that can read; corrections: settings by what they are called.

    With one reader there is no vote of checkpoints. quick: beams and votes alone.
    """
    first, *_ = readers
    own = read_manifest(readers[first]).decode
    plain = _over(own, {"search": "greedy"})
    searches = [plain]
    generates = read_manifest(readers[first]).recognizer["kind"] != "query-digits"
    if generates:
        searches += [_over(own, {"search": "beam", "width": width, "n_best": width}) for width in WIDTHS]
        if not quick:
            sampled = {"search": "sample", "temperature": 0.7, "samples": 5, "n_best": 5}
            searches.append(_over(own, sampled))
    points = [DecodePoint(members=(first,), decode=decode) for decode in searches]
    everyone = tuple(readers)
    votes: Sequence[VoteMethod] = get_args(VoteMethod) if len(everyone) > 1 else ()
    together = plain if not generates else searches[2]
    points += [DecodePoint(members=everyone, decode=together, ensemble_vote=vote) for vote in votes]
    if quick:
        return points
    for correction in corrections.values():
        chosen = CorrectionSettings.model_validate(correction)
        wide = together if generates else plain
        if chosen.lm_fusion == "shallow" and not generates:
            continue
        corrected = wide.model_copy(update={"correction": chosen})
        points.append(DecodePoint(members=(first,), decode=corrected))
        if votes:
            points.append(DecodePoint(members=everyone, decode=corrected, ensemble_vote="mbr"))
    return points


def available_corrections(lexicon: Path | None, confusions: Path | None, lm: Path | None) -> dict[str, dict[str, Any]]:
    """Every correction that can be had from some files: alone, and together."""
    found: dict[str, dict[str, Any]] = {}
    words: dict[str, Any] = {}
    if lexicon is not None:
        words = {"lexicon": str(lexicon.absolute())}
        if confusions is not None:
            words["confusions"] = str(confusions.absolute())
        found["lexicon"] = words
    if lm is not None:
        model = {"language_model": str(lm.absolute())}
        found["language model, reranking"] = model
        if lm.suffix == ".arpa":
            found["language model in the beam"] = {**model, "lm_fusion": "shallow"}
        if words:
            found["lexicon and language model"] = {**words, **model}
    return found


def _over(own: DecodeSettings, changes: dict[str, Any]) -> DecodeSettings:
    kept = own.model_dump(
        include={"windows", "window_frames", "vote", "vote_floor", "length_priors", "calibration"}, mode="json"
    )
    return DecodeSettings.model_validate({**kept, **changes})
