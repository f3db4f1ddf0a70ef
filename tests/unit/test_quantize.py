"""Bundles in less space read like the ones they were made from, bit for bit the same each time, and say what they cost."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from glyphrun.bundle import SUMS, BundleError, load_engine, read_manifest, save_bundle
from glyphrun.compiled import compile_blocks
from glyphrun.data.batches import load_split
from glyphrun.data.digits import mnist_digits
from glyphrun.data.sample import Sample
from glyphrun.data.shards import write_samples
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.evaluation.evaluate import evaluate
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.inference import (
    PAYS,
    Int8Attention,
    Int8Linear,
    compute_in_int8,
    computes_in_int8,
    int8_blocks,
    vision_blocks,
)
from glyphrun.models.layers import Attention
from glyphrun.models.quantize import (
    Method,
    computes_in,
    int8_matrices,
    linear_weights,
    load_stored,
    precision_of,
    quantize_recognizer,
    restored,
    rounded,
    stored,
)
from glyphrun.models.recognizer import Recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.quantized import Comparison, Measured, losses, quantize_bundle, shown
from glyphrun.recipe import processor_for
from glyphrun.text import DIGITS, Codec
from glyphrun.training.fit import TrainSettings, fit
from tiny_vlm import save_tiny, tiny_codec, tiny_vlm

CPU = torch.device("cpu")
CODEC = Codec(DIGITS, 2)
WIDE = {"encoder": {"width": 192, "mlp_ratio": 4.0}}
"""A block of 442,368 weights: the smallest size here that computes in int8."""


def recognizer(name: str, **changes: object) -> Recognizer:
    torch.manual_seed(3)
    return build(recognizer_settings(name, changes), CODEC).eval()


def save(folder: Path, model: Recognizer, method: Method = "float32") -> Path:
    save_bundle(
        folder,
        name="numbers",
        recognizer=model,
        codec=CODEC,
        processor=processor_for(model.settings),
        decode=DecodeSettings(),
        metrics={},
        provenance={"seed": "3"},
        method=method,
    )
    return folder


def in_int8(model: Recognizer, pays: int = 1) -> Recognizer:
    """A copy in which every layer with int8 weights computes in int8, if nothing else is said."""
    tensors = stored(model, "int8")
    quantized = copy.deepcopy(model)
    quantized.load_state_dict(restored(tensors))
    compute_in_int8(quantized, int8_matrices(tensors), pays)
    return quantized


def engine_of(model: Recognizer) -> Engine:
    return Engine(model, CODEC, processor_for(model.settings), device=CPU, precision="float32")


def crop(seed: int, height: int = 40, width: int = 40) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def features(engine: Engine, items: list[list[bytes]]) -> list[np.ndarray]:
    found = engine.embed([engine.prepare(item, name="item") for item in items])
    return [np.concatenate(item.frames) for item in found]


def error(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


def test_an_int8_layer_is_the_product_of_its_integers_and_a_percent_from_the_float_layer():
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    x = torch.randn(3, 50, 96) * torch.rand(3, 50, 1) * 10  # tokens of very different size
    matrix, scale = rounded(layer.weight.detach())
    quantized = Int8Linear(matrix, scale, layer.bias)
    largest = x.abs().amax(-1, keepdim=True)
    integers = (x.double() / (largest.double() / 127)).round()
    exact = integers @ matrix.double().t() * (largest / 127) * scale + layer.bias
    assert error(quantized(x).double(), exact) < 1e-5
    assert 0.001 < error(quantized(x), layer(x)) < 0.015
    assert matrix.abs().amax() >= 127
    assert torch.equal(quantized.weight, matrix * scale.unsqueeze(1))


def test_weights_are_rounded_as_torchaos_own_layers_round_them():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 48))
    quantized = Int8Linear(*rounded(layer[0].weight.detach()), layer[0].bias)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    assert torch.equal(layer[0].weight.qdata, quantized.matrix)
    x = torch.randn(20, 64)
    assert error(quantized(x), layer(x)) < 0.01  # its activations have 255 steps, these 254


def test_a_token_reads_the_same_alone_and_in_any_batch():
    torch.manual_seed(0)
    layer = Int8Linear(*rounded(torch.randn(30, 64)), None)
    x = torch.randn(9, 64)
    x[4] *= 1000
    assert torch.equal(torch.cat([layer(row) for row in x.split(1)]), layer(x))
    assert torch.equal(layer(torch.zeros(2, 64)), torch.zeros(2, 30))
    assert layer(x[:0]).shape == (0, 30)


def test_half_precision_around_an_int8_layer_leaves_its_scales_exact():
    torch.manual_seed(0)
    layer = Int8Linear(*rounded(torch.randn(30, 64)), torch.randn(30))
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(cast.scale, layer.scale) and torch.equal(cast.matrix, layer.matrix)
    x = torch.randn(5, 64).bfloat16()
    assert cast(x).dtype == torch.bfloat16
    assert error(cast(x).float(), layer(x.float())) < 0.005


def test_an_int8_recognizer_reads_in_half_precision_where_it_is_not_int8():
    quantized, items = in_int8(recognizer("query-digits-nano")), [[crop(0)], [crop(1)]]
    half = Engine(quantized, CODEC, processor_for(quantized.settings), device=CPU, precision="bfloat16")
    layers = [layer for layer in half.recognizer.modules() if isinstance(layer, Int8Linear)]
    assert {(layer.matrix.dtype, layer.scale.dtype) for layer in layers} == {(torch.int8, torch.float32)}
    for one, other in zip(features(half, items), features(engine_of(quantized), items), strict=True):
        assert 0 < np.linalg.norm(one - other) / np.linalg.norm(other) < 0.03


def test_attention_is_quantized_in_both_of_its_input_projections():
    torch.manual_seed(0)
    attention = Attention(48, 4).eval()
    nn.init.normal_(attention.in_proj_bias)
    quantized = Int8Attention(attention, *rounded(attention.in_proj_weight.detach()))
    query, source = torch.randn(2, 3, 48), torch.randn(2, 7, 48)
    mask = torch.rand(2, 1, 3, 7) > 0.3
    mask[..., 0] = True
    with torch.inference_mode():
        for one, other in zip(quantized.keys_values(source), attention.keys_values(source), strict=True):
            assert error(one, other) < 0.02
        mixed = quantized(query, quantized.keys_values(source), mask)
        assert error(mixed, attention(query, attention.keys_values(source), mask)) < 0.03


@pytest.mark.parametrize("name", ["parseq-nano", "query-digits-nano", "line-ctc-nano", "trocr-nano"])
def test_every_kind_of_recognizer_computes_in_int8_close_to_float(name):
    model = recognizer(name)
    quantized = in_int8(model)
    layers = [layer for layer in quantized.modules() if isinstance(layer, Int8Linear)]
    assert len(layers) >= len(linear_weights(model)) >= 8
    assert len(int8_blocks(quantized)) == (1 if name.startswith(("parseq", "query")) else 2)
    items = [[crop(seed, 40, width)] for seed, width in enumerate((40, 90, 60))]
    for one, other in zip(features(engine_of(quantized), items), features(engine_of(model), items), strict=True):
        assert 0 < np.linalg.norm(one - other) / np.linalg.norm(other) < 0.03
    assert [reading.text is not None for reading in engine_of(quantized).read(items)] == [True] * 3


def test_a_vision_language_model_reads_through_int8_layers(tmp_path):
    model = tiny_vlm(save_tiny(tmp_path / "model", "qwen2_vl"))
    tensors = {name: rounded(model.get_parameter(name).detach()) for name in _matrices(model)}
    quantized = copy.deepcopy(model)
    compute_in_int8(quantized, tensors, pays=1)
    assert len(int8_blocks(quantized)) == 2
    engines = [
        Engine(each, tiny_codec(tmp_path / "model"), processor_for(model.settings), device=CPU)
        for each in (quantized, model)
    ]
    one, other = (features(engine, [[crop(0, 56, 84)]])[0] for engine in engines)
    assert 0 < np.linalg.norm(one - other) / np.linalg.norm(other) < 0.05
    assert engines[0].read([[crop(0, 56, 84)]])[0].text is not None


def _matrices(model: nn.Module) -> list[str]:
    """All of them: those of a tiny model are too small to be stored as int8."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_int8_is_computed_where_it_pays_and_nowhere_else():
    tiny = in_int8(recognizer("parseq-tiny"), PAYS)
    assert len(int8_blocks(tiny)) == 12
    assert isinstance(tiny.encoder.blocks[11].attn.qkv, Int8Linear)
    assert type(tiny.decoder.layers[0].linear1) is nn.Linear
    assert type(tiny.decoder.layers[0].cross_attn) is Attention
    assert not computes_in_int8(in_int8(recognizer("parseq-nano"), PAYS))
    small = in_int8(recognizer("parseq-small", encoder={"depth": 1}), PAYS)
    assert isinstance(small.decoder.layers[0].cross_attn, Int8Attention)
    assert type(small.decoder.layers[0].cross_attn.out_proj) is nn.Linear


def test_fused_layers_of_torch_keep_the_weights_that_they_read_by_themselves():
    class Fused(Recognizer):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
            self.attention = nn.MultiheadAttention(64, 4)

        def parts(self) -> dict[str, tuple[str, ...]]:
            return {"vision": ("encoder",)}

    torch.manual_seed(0)
    model = Fused().eval()
    assert "attention.in_proj_weight" in linear_weights(model)
    quantized = in_int8(model)
    assert not computes_in_int8(quantized)
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        assert error(quantized.encoder(x), model.encoder(x)) < 0.02
    assert [name for name, _ in vision_blocks(model, {"encoder.layers.0.linear1.weight": 9}, 1)] == ["encoder.layers.0"]


def test_parseq_tiny_takes_at_most_three_tenths_in_int8_and_half_in_half_precision(tmp_path):
    model = recognizer("parseq-tiny")
    sizes = {
        method: (save(tmp_path / method, model, method) / "weights.safetensors").stat().st_size
        for method in ("float32", "float16", "bfloat16", "int8")
    }
    assert sizes["int8"] <= 0.30 * sizes["float32"]
    assert max(sizes["float16"], sizes["bfloat16"]) <= 0.51 * sizes["float32"]


def test_a_bundle_holds_plain_tensors_of_the_states_names(tmp_path):
    model = recognizer("parseq-nano")
    folder = save(tmp_path / "int8", model, "int8")
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json", ".md", ""}
    tensors = load_file(folder / "weights.safetensors")
    attention = "decoder.layers.0.cross_attn.in_proj_weight"
    assert tensors[attention].dtype == torch.int8 and tensors[attention].shape == (288, 96)
    assert tensors[f"{attention}_scale"].shape == (288,) and tensors[f"{attention}_scale"].dtype == torch.float32
    assert tensors["encoder.patch_embed.proj.0.weight"].dtype == torch.float16
    assert tensors["encoder.patch_embed.proj.1.running_var"].dtype == torch.float32
    assert tensors["head.weight"].dtype == torch.float16  # eleven outputs: too small to be worth rounding
    assert restored(tensors).keys() == model.state_dict().keys()
    assert read_manifest(folder).precision.method == "int8"


def test_loading_gives_the_stored_integers_bit_for_bit(tmp_path):
    folder = save(tmp_path / "int8", recognizer("query-digits", encoder={"depth": 1}), "int8")
    tensors = load_file(folder / "weights.safetensors")
    model = recognizer("query-digits", encoder={"depth": 1})
    load_stored(model, tensors, CPU)
    if computes_in("int8", CPU):
        block = model.encoder.blocks[0]
        assert torch.equal(block.attn.qkv.matrix, tensors["encoder.blocks.0.attn.qkv.weight"])
        assert torch.equal(block.mlp.fc1.scale, tensors["encoder.blocks.0.mlp.fc1.weight_scale"])
    same = quantize_recognizer(recognizer("query-digits", encoder={"depth": 1}))
    for (name, one), other in zip(model.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("method", ["float16", "bfloat16"])
def test_half_precision_weights_are_the_parents_rounded_once(tmp_path, method):
    model = recognizer("parseq-nano")
    folder = save(tmp_path / method, model, method)
    engine = load_engine(folder, CPU)
    assert engine.precision == precision_of(method, CPU)
    loaded = load_engine(folder, CPU, "float32").recognizer.state_dict()
    for name, value in model.state_dict().items():
        kept = value.to(getattr(torch, method)).float() if value.ndim >= 2 else value
        assert torch.equal(loaded[name], kept), name


def test_precisions_that_the_hardware_lacks_are_read_in_float32():
    able = torch.cpu.get_capabilities()
    assert precision_of("float16", CPU) == ("float16" if able.get("amx_fp16") else "float32")
    assert precision_of("bfloat16", CPU) == (
        "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
    )
    assert computes_in("int8", CPU) == any(able.get(name) for name in ("avx_vnni", "avx512_vnni", "amx_int8"))


def test_bundles_from_before_there_were_methods_are_float32(tmp_path):
    folder = save(tmp_path / "bundle", recognizer("parseq-nano"))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["precision"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = (folder / SUMS).read_text().splitlines()
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / SUMS).write_text(
        "".join(f"{digest}  manifest.json\n" if line.endswith("manifest.json") else f"{line}\n" for line in lines)
    )
    assert read_manifest(folder).precision.method == "float32"
    assert load_engine(folder, CPU).read([[crop(0)]])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundles") / "parent", recognizer("query-digits-nano"))


def test_a_quantized_bundle_is_scored_and_timed_next_to_its_parent(untrained, small_dataset, tmp_path):
    out = tmp_path / "made" / "int8"
    comparison = quantize_bundle(untrained, out, "int8", small_dataset)
    assert [path.name for path in out.parent.iterdir()] == ["int8"]
    before, after = comparison.parent, comparison.quantized
    assert after.size == (out / "weights.safetensors").stat().st_size
    assert comparison.size_ratio == after.size / before.size < 0.5
    engine = load_engine(out, CPU)
    scores = evaluate(engine, load_split(small_dataset, "val", engine.processor))
    assert (after.exact, after.cer) == (scores.exact.value, scores.cer.value)
    assert comparison.cer_lost == after.cer - before.cer
    assert comparison.times_as_fast == after.images_per_s / before.images_per_s > 0
    assert before.ms > 0 and after.ms > 0
    assert after.computed_in == before.computed_in and "so small" in comparison.remarks[0]
    manifest, parent = read_manifest(out), read_manifest(untrained)
    assert manifest.metrics["val"]["cer"] == after.cer and manifest.metrics["val"]["n"] == 20
    assert manifest.provenance == {
        **parent.provenance,
        "parent": hashlib.sha256((untrained / SUMS).read_bytes()).hexdigest(),
    }
    assert "int8" in (out / "MODEL_CARD.md").read_text()
    assert json.loads(json.dumps(comparison.to_json()))["size_ratio"] == comparison.size_ratio
    assert shown(comparison).row_count == 6


def test_what_speaks_against_a_method_is_said():
    parent = Measured(4, "float32", ms=1.0, images_per_s=100.0, exact=0.9, cer=0.05)
    assert losses(parent, Measured(1, "int8", ms=0.5, images_per_s=180.0, exact=0.89, cer=0.055)) == ()
    worse, slower = losses(parent, Measured(1, "int8", ms=2.0, images_per_s=80.0, exact=0.85, cer=0.07))
    assert "rose by 2.0 points" in worse and "more slowly than its parent" in slower
    assert losses(parent, Measured(1, "float32", ms=1.0, images_per_s=99.0, exact=0.9, cer=0.05)) == ()


def test_without_a_data_set_only_the_size_is_known(untrained, tmp_path):
    comparison = quantize_bundle(untrained, tmp_path / "half", "float16")
    assert 0.49 < comparison.size_ratio < 0.53
    assert (comparison.quantized.ms, comparison.cer_lost, comparison.times_as_fast) == (None, None, None)
    assert comparison.remarks[0] == "without a data set nothing was scored or timed"
    assert read_manifest(tmp_path / "half").metrics == {}


def test_what_cannot_be_quantized_is_refused_in_a_sentence_and_leaves_nothing(untrained, small_dataset, tmp_path):
    once = tmp_path / "once"
    quantize_bundle(untrained, once, "int8")
    with pytest.raises(BundleError, match="once is stored in int8 already: quantize the one it was made from"):
        quantize_bundle(once, tmp_path / "twice", "bfloat16")
    with pytest.raises(BundleError, match="once exists already"):
        quantize_bundle(untrained, once, "int8")
    with pytest.raises(ValueError, match="float32 is what bundles are trained in"):
        quantize_bundle(untrained, tmp_path / "same", "float32")
    with pytest.raises(ValueError, match="does not exist"):
        quantize_bundle(untrained, tmp_path / "unscored", "int8", tmp_path / "no-data")
    large = recognizer("parseq-nano")
    with torch.no_grad():
        large.pos_queries[0, 0, 0] = 1e5
    parent = save(tmp_path / "large", large)
    with pytest.raises(ValueError, match=r"pos_queries has values that float16 cannot hold .*: choose bfloat16"):
        quantize_bundle(parent, tmp_path / "too-large", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "once"]
    assert stored(large, "int8")["pos_queries"].dtype == torch.float32


def test_a_recognizer_without_linear_layers_is_refused():
    class Convolutions(Recognizer):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 64, 7)

    with pytest.raises(ValueError, match="Convolutions has no linear layer of 4,096 weights or more"):
        stored(Convolutions(), "int8")
    with pytest.raises(ValueError, match="computes in int8 already"):
        stored(in_int8(recognizer("parseq-nano")), "int8")


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
    model = recognizer("parseq-nano", **WIDE)
    processor = ImageProcessor(height=40, width=40)
    train, val = (load_split(numbers, split, processor) for split in ("train", "val"))
    settings = TrainSettings(
        steps=160, batch_size=32, frames_per_item=1, learning_rate=2e-3, warmup=20, augment=None, evaluate_every=160
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
