"""Bundles in less space hold plain tensors, and give the same weights bit for bit each time they are loaded."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from glyphrun.bundle import SUMS, load_engine, read_manifest
from glyphrun.models.quantize import computes_in, load_stored, precision_of, quantize_recognizer, restored, stored
from glyphrun.models.recognizer import Recognizer
from int8_recognizers import CPU, crop, in_int8, recognizer, save


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


def test_a_recognizer_without_linear_layers_is_refused():
    class Convolutions(Recognizer):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 64, 7)

    with pytest.raises(ValueError, match="Convolutions has no linear layer of 4,096 weights or more"):
        stored(Convolutions(), "int8")
    with pytest.raises(ValueError, match="computes in int8 already"):
        stored(in_int8(recognizer("parseq-nano")), "int8")
