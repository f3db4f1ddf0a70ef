"""What a person can mend is one sentence; a mistake of the program's own keeps its traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import typer
from PIL import Image
from pydantic import BaseModel

from glyphrun.cli.options import plain_errors
from glyphrun.decoding.settings import CorrectionSettings
from glyphrun.members import EnsembleSettings
from glyphrun.sweeps.errors import last_words


def raising(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def declaring(kind: type[BaseModel], **fields: object) -> Callable[[], None]:
    return lambda: kind.model_validate(fields) and None


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: json.loads("{"), "glyphrun: Expecting property name enclosed in double quotes: line 1"),
        (lambda: pa.array([1, "2"]), "glyphrun: Could not convert '2'"),
        (lambda: Image.open("/dev/null"), "glyphrun: cannot identify image file"),
        (lambda: Path("no such.png").read_bytes(), "glyphrun: no such.png: No such file or directory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "glyphrun: CUDA out of memory"),
        (raising(MemoryError()), "glyphrun: there is not memory enough: close other programs"),
        (
            declaring(EnsembleSettings, vote="average", deadline_ms={"one": 5}),
            "glyphrun: members that are averaged read in step",
        ),
        (declaring(CorrectionSettings, lexicon="words.tsv", max_edits=9), "glyphrun: max_edits: Input should be less"),
    ],
)
def test_what_was_given_is_told_in_a_sentence(action, said, capsys):
    with pytest.raises(typer.Exit) as ended, plain_errors():
        action()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.startswith(said)


def test_what_another_process_raised_is_told_without_the_classes_before_it():
    said = "Traceback (most recent call last):\n  File …\nray.exceptions.RayTaskError(WeightsError): ray::train()\n"
    assert last_words(said + "glyphrun.models.weights.WeightsError: no such file: a.pt") == "no such file: a.pt"
    assert last_words("one of: two") == "one of: two"
    assert last_words("RuntimeError: worker 1 of 2 failed: ValueError: x") == "worker 1 of 2 failed: ValueError: x"
    assert last_words("") == ""


@pytest.mark.parametrize("error", [KeyError("winner"), AssertionError("never"), TypeError("no")])
def test_a_mistake_of_our_own_is_not_hidden(error):
    with pytest.raises(type(error)), plain_errors():
        raise error
