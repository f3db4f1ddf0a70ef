"""Held-out items for the report: some that the winner reads rightly and as many that it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glyphrun.data.sample import Sample, iterate_samples, read_card
from glyphrun.data.shards import write_samples
from glyphrun.ensemble_bundle import load_reader
from glyphrun.images import decode_image, encode_image

EXAMPLES = 24


@dataclass(frozen=True)
class Judged:
    """The items of a split and which of them the winner reads rightly; sample_ids and right: N each."""

    sample_ids: Sequence[str]
    right: np.ndarray


def draw_examples(
    judged: Mapping[str, Judged], rng: np.random.Generator, count: int = EXAMPLES
) -> dict[str, list[str]]:
    """Ids by split: half of them of wrong readings where there are so many, drawn evenly from the splits.

    A good recognizer is wrong so seldom that a plain draw would hardly show how.
    """
    pools: dict[bool, list[list[tuple[str, str]]]] = {}
    for right in (False, True):
        shuffled = [
            [(split, str(one.sample_ids[item])) for item in rng.permutation(np.flatnonzero(one.right == right))]
            for split, one in judged.items()
        ]
        pools[right] = shuffled
    wrong = _in_turns(pools[False])
    known = _in_turns(pools[True])
    of_wrong = min(len(wrong), max(count // 2, count - len(known)))
    drawn = wrong[:of_wrong] + known[: count - of_wrong]
    return {split: sorted(sample for of, sample in drawn if of == split) for split in judged}


def _in_turns(pools: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    """One of each pool after the other, as long as it has any."""
    longest = max(map(len, pools), default=0)
    return [pool[place] for place in range(longest) for pool in pools if place < len(pool)]


def save_examples(dataset: Path, run_dir: Path, judged: Mapping[str, Judged], seed: int) -> list[dict[str, Any]]:
    """What the saved bundle itself reads of the examples; their frames go into run_dir/examples."""
    drawn: list[Sample] = []
    for split, wanted in draw_examples(judged, np.random.default_rng(seed)).items():
        drawn += [_for_browsers(sample) for sample in iterate_samples(dataset, split) if sample.sample_id in wanted]
    card = read_card(dataset)
    write_samples(
        drawn,
        run_dir / "examples",
        name="examples",
        licence=card.licence,
        description="Items shown in the report",
        charset=card.charset,
        overwrite=True,
    )
    reader = load_reader(run_dir / "bundle")
    readings = reader.read([sample.frames for sample in drawn], explain=True)
    return [
        {
            "sample_id": sample.sample_id,
            "split": sample.split,
            "truth": sample.text,
            "reading": reading.text,
            "confidence": reading.confidence,
            "votes": [
                [ballot.text, ballot.weight] for ballot in reading.votes if len(reading.votes) == len(sample.frames)
            ],
        }
        for sample, reading in zip(drawn, readings, strict=True)
    ]


def _for_browsers(sample: Sample) -> Sample:
    """The sample with frames that every browser shows: what is neither JPEG nor PNG becomes PNG."""
    return replace(
        sample,
        frames=tuple(
            data
            if data.startswith((b"\xff\xd8", b"\x89PNG"))
            else encode_image(decode_image(data, name=sample.sample_id))
            for data in sample.frames
        ),
    )
