"""What is computed in int8 is a percent from what is computed in float, and is computed where it pays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glyphrun.engine import Engine
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
from glyphrun.models.quantize import linear_weights, rounded
from glyphrun.models.recognizer import Recognizer
from glyphrun.recipe import processor_for
from int8_recognizers import CODEC, CPU, crop, engine_of, features, in_int8, recognizer
from tiny_vlm import save_tiny, tiny_codec, tiny_vlm


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
