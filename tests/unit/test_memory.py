"""Memory is really taken away, by the limit of a process; what is advised is what then fits."""

from __future__ import annotations

import json
import multiprocessing
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from glyphrun.data.batches import FrameArrays
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import Scores, evaluate
from glyphrun.images import Frame, ImageProcessor
from glyphrun.memory import OutOfMemory, largest_that_fits, or_out_of_memory, ran_out_of_memory
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec
from glyphrun.training.fit import TrainSettings, fit
from glyphrun.training.memory import smaller_batches
from glyphrun.training.parallel import Workers
from little_memory import allow

CPU, CODEC, PROCESSOR = torch.device("cpu"), Codec(DIGITS, 2), ImageProcessor(height=32, width=128)


def lines() -> FrameArrays:
    frames = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 128)).astype(np.uint8)
    stills = [Frame(frame, (32, 128)) for frame in frames]
    return FrameArrays.of_frames(stills, range(65), ["12"] * 64, [str(item) for item in range(64)])


def recognizer(width: int, depth: int, patch: int) -> Recognizer:
    """patch: its height; a low one makes many places, whose attention needs far more memory than time."""
    torch.manual_seed(0)
    encoder = {"width": width, "depth": depth, "heads": 2, "patch": (patch, 8)}
    return build(recognizer_settings("parseq-tiny", {"encoder": encoder, "decoder_heads": 2, "dropout": 0.0}), CODEC)


def train(model: Recognizer, batch_size: int, accumulate: int, folder: Path, workers: Workers | None = None) -> None:
    arrays = lines()
    plan = TrainSettings(steps=2, batch_size=batch_size, accumulate=accumulate, warmup=0)

    def score(trained: Recognizer) -> Scores:
        return evaluate(Engine(trained, CODEC, PROCESSOR, device=CPU, precision="float32"), arrays)

    several = {} if workers is None else {"workers": workers}
    list(fit(model, CODEC, PROCESSOR, arrays, score, plan, folder, device=CPU, precision="float32", **several))


def run(action: Callable[..., None], folder: Path, **arguments: int) -> Any:
    """What an action writes as JSON in a process of its own, after a small training."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "torch._dynamo", "glyphrun.models.zoo", "glyphrun.training.fit"])
    process = processes.Process(target=after_a_first_training, args=(action, folder, arguments))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "said.json").read_text())


def after_a_first_training(action: Callable[..., Any], folder: Path, arguments: dict[str, int]) -> None:
    """Threads and libraries that a first training brings in are no part of the limit."""
    torch.set_num_threads(1)
    train(recognizer(64, 2, 4), 1, 1, folder / "first")
    (folder / "said.json").write_text(json.dumps(action(folder, **arguments)))


def train_limited(folder: Path, megabytes: int, batch_size: int, accumulate: int, **shape: int) -> list:
    """What a training with little memory says (None: it came to its end), and if the weights are still the first ones."""
    model, said = recognizer(**shape), None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allow(megabytes)
    try:
        train(model, batch_size, accumulate, folder / "limited")
    except OutOfMemory as error:
        said = str(error)
    return [said, all(torch.equal(value, before[name]) for name, value in model.state_dict().items())]


def share_limited(rank: int, folder: Path, megabytes: int, shape: dict[str, int]) -> None:
    """One of two workers that train together; the second has little memory."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = recognizer(**shape)
    if rank == 1:
        allow(megabytes)
    try:
        train(model, 64, 1, folder / "shared", Workers(rank, 2))
    except RuntimeError as error:
        (folder / f"said-{rank}").write_text(str(error))


def read_limited(folder: Path, megabytes: int) -> list:
    """How many items an engine with little memory was found to read at once, how many it then reads, and what it said."""
    arrays = lines()
    engine = Engine(recognizer(384, 1, 4), CODEC, PROCESSOR, device=CPU, precision="float32")
    items = [arrays.item(item) for item in range(64)]
    allow(megabytes)

    try:
        engine.read_prepared(items)
    except OutOfMemory as error:
        said = str(error)
    fits = int(said.split("and ")[1].split()[0])
    return [fits, len(engine.read_prepared(items[:fits])), said]


def test_the_batch_that_is_advised_trains_where_the_one_asked_for_does_not(tmp_path):
    size = {"width": 16, "depth": 1, "patch": 1}
    advised = {}
    for megabytes in (300, 150):
        said, untouched = run(
            train_limited, tmp_path / str(megabytes), megabytes=megabytes, batch_size=64, accumulate=1, **size
        )
        assert said.startswith("a batch of 64 items does not fit in memory, and one of ")
        assert untouched
        fits, accumulate = map(int, re.search(r"set batch_size (\d+) and accumulate (\d+) for", said).groups())
        assert fits * accumulate == 64
        advised[megabytes] = fits, accumulate
    assert 32 >= advised[300][0] > advised[150][0] >= 1
    fits, accumulate = advised[300]
    said, untouched = run(
        train_limited, tmp_path / "fits", megabytes=300, batch_size=fits, accumulate=accumulate, **size
    )
    assert said is None
    assert not untouched


def test_a_worker_that_runs_out_of_memory_says_so_without_waiting_for_the_others(tmp_path):
    """The others wait for it in an exchange until it is gone, and take no step."""
    processes = multiprocessing.get_context("forkserver")
    shape = {"width": 16, "depth": 1, "patch": 1}
    started = [processes.Process(target=share_limited, args=(rank, tmp_path, 150, shape)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert "a batch of 64 items over 2 workers does not fit in memory, and one of" in (tmp_path / "said-1").read_text()
    assert "connection" in (tmp_path / "said-0").read_text().lower()
    assert not (tmp_path / "shared").exists()


def test_a_recognizer_whose_moments_alone_are_too_large_is_told_so(tmp_path):
    """24 million parameters: AdamW needs 190 MB beside the gradient, whatever the batch."""
    said, untouched = run(
        train_limited, tmp_path, megabytes=150, batch_size=2, accumulate=1, width=384, depth=12, patch=4
    )
    assert said.startswith("not even a batch of one item fits in memory: choose a smaller recognizer")
    assert untouched


def test_an_engine_that_has_too_little_memory_reads_the_largest_number_of_items_that_fits(tmp_path):
    fits, read, said = run(read_limited, tmp_path, megabytes=64)
    assert 1 <= fits == read <= 32
    assert f"items at once do not fit in memory, and {fits} do: give at most {fits} at a time" in said


def test_memory_that_is_refused_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as torch_refused:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpy_refused:
        np.ones(2**60, np.uint8)
    with pytest.raises(RuntimeError) as shapes:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert ran_out_of_memory(torch_refused.value)
    assert ran_out_of_memory(numpy_refused.value)
    assert not ran_out_of_memory(shapes.value)
    assert not ran_out_of_memory(OutOfMemory("not enough memory: advice was given already"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        or_out_of_memory(lambda: torch.ones(2, 3) @ torch.ones(2, 3), lambda: "advice")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        largest_that_fits(lambda size: torch.ones(size, 3) @ torch.ones(2, 3), [2, 1])


def test_what_a_failed_action_held_is_free_before_advice_is_sought():
    held: list[weakref.ref] = []

    def fill() -> None:
        tensor = torch.ones(1000, requires_grad=True).exp()
        held.append(weakref.ref(tensor))
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(OutOfMemory, match="^freed True"):
        or_out_of_memory(fill, lambda: f"freed {held[0]() is None}")


def test_smaller_batches_divide_the_batch_and_leave_every_worker_an_item():
    assert smaller_batches(64, 1) == [32, 16, 8, 4, 2, 1]
    assert smaller_batches(50, 1) == [25, 10, 5, 2, 1]
    assert smaller_batches(7, 1) == [1]
    assert smaller_batches(48, 3) == [24, 12, 6, 3]
    assert smaller_batches(1, 1) == []
