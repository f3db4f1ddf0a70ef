"""Recognizers that compute in int8 are compiled once for batches of any size, are read without a compiler too, and lose little."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from glyphrun.bundle import load_engine
from glyphrun.compiled import compile_blocks
from glyphrun.data.batches import load_split
from glyphrun.data.digits import mnist_digits
from glyphrun.data.sample import Sample
from glyphrun.data.shards import write_samples
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.inference import PAYS
from glyphrun.models.quantize import computes_in
from glyphrun.quantized import Comparison, quantize_bundle
from glyphrun.text import DIGITS
from glyphrun.training.fit import TrainSettings, fit
from int8_recognizers import CODEC, CPU, WIDE, crop, engine_of, features, in_int8, recognizer, save


@pytest.mark.slow
@pytest.mark.skipif(not computes_in("int8", CPU), reason="this processor has no 8-bit dot products")
def test_once_loaded_batches_of_any_size_are_read_compiled_and_nothing_is_compiled_for_them(tmp_path):
    model = recognizer("query-digits-nano", fusion="attention", **WIDE)
    engine = load_engine(save(tmp_path / "int8", model, "int8"), CPU)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 2  # a frame alone, and several
    eager = engine_of(in_int8(model, PAYS))
    items = [[crop(10 * item + frame) for frame in range(item % 3 + 1)] for item in range(33)]

    def read() -> None:
        for count in (1, 2, 5, 17, 33):
            for one, other in zip(features(engine, items[:count]), features(eager, items[:count]), strict=True):
                assert np.abs(one - other).max() < 1e-2 * np.abs(other).max()

    read()
    elsewhere = threading.Thread(target=read)  # a replica reads in a thread of its own
    elsewhere.start()
    elsewhere.join()
    assert counters["stats"]["unique_graphs"] == graphs
    encode = engine.recognizer.encode.__wrapped__
    with torch.compiler.set_stance("fail_on_recompile"), torch.inference_mode():
        for count in (1, 2, 3, 40):
            encode(torch.zeros(1, count, 3, 40, 40), torch.ones(1, count, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.skipif(not computes_in("int8", CPU), reason="this processor has no 8-bit dot products")
def test_without_a_compiler_the_same_is_read_after_a_warning(tmp_path):
    save(tmp_path / "int8", recognizer("query-digits-nano", **WIDE), "int8")
    program = (
        "import sys; from pathlib import Path; import torch; from glyphrun.bundle import load_engine\n"
        "engine = load_engine(Path(sys.argv[1]), torch.device('cpu'))\n"
        "print(engine.read([[Path(sys.argv[2]).read_bytes()]])[0].confidence)"
    )
    (tmp_path / "crop.png").write_bytes(crop(0))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "int8"), str(tmp_path / "crop.png")],
        env={**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "this machine cannot compile the recognizer" in done.stderr
    assert "install a C++ compiler" in done.stderr
    eager = engine_of(in_int8(recognizer("query-digits-nano", **WIDE), PAYS))
    assert float(done.stdout) == pytest.approx(eager.read([[crop(0)]])[0].confidence, abs=1e-4)


def test_a_recognizer_in_float_is_not_compiled():
    engine = engine_of(recognizer("parseq-nano"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_blocks(engine)
    assert "encode" not in vars(engine.recognizer)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One or two real handwritten digits side by side; no digit is in both splits."""
    images, labels = mnist_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    samples = []
    for split, count, pool in (("train", 2000, order[:4000]), ("val", 400, order[4000:])):
        for number in range(count):
            chosen = rng.choice(pool, int(rng.integers(1, 3)))
            picture = np.repeat(np.hstack(list(images[chosen]))[:, :, None], 3, axis=2)
            text = "".join(str(labels[digit]) for digit in chosen)
            samples.append(Sample(f"{split}-{number}", (encode_image(picture),), text, split))
    folder = tmp_path_factory.mktemp("data") / "numbers"
    write_samples(samples, folder, name="numbers", licence="MNIST", description="Numbers.", charset=DIGITS)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not computes_in("int8", CPU), reason="this processor has no 8-bit dot products")
def test_a_trained_recognizer_loses_less_than_a_point_of_cer_in_int8(numbers, tmp_path):
    model = recognizer("query-digits-nano", **WIDE)
    processor = ImageProcessor(height=40, width=40)
    train, val = (load_split(numbers, split, processor) for split in ("train", "val"))
    settings = TrainSettings(
        steps=100, batch_size=32, frames_per_item=1, learning_rate=2e-3, warmup=10, augment=None, evaluate_every=100
    )
    reports = list(
        fit(
            model,
            CODEC,
            processor,
            train,
            lambda trained: evaluate(engine_of(trained), val),
            settings,
            tmp_path / "checkpoint",
            device=CPU,
            precision="float32",
        )
    )
    assert reports[-1].scores["cer"] < 0.2
    comparison: Comparison = quantize_bundle(save(tmp_path / "parent", model), tmp_path / "int8", "int8", numbers)
    assert comparison.quantized.computed_in == "int8"
    assert comparison.size_ratio < 0.35  # a third of this one is its convolutional stem
    assert abs(comparison.cer_lost) <= 0.01
    everywhere = evaluate(engine_of(in_int8(model.eval())), val)
    assert everywhere.cer.value - reports[-1].scores["cer"] <= 0.01
