"""A trained recognizer's form for reading in int8: the products of its large linear layers are those of 8-bit integers.

torch's own integer product makes 400 G operations/s on a core with AVX512-VNNI, float32 100. What stands around it in
eager mode (a pass each for maximum, division, rounding, cast and both scales) takes as long again; torch.compile
fuses it with the norms and activations of a block. The encoder of parseq-tiny on such a core, batch 32, best of six
on a busy machine: float32 626 ms, int8 eager 459 ms, int8 compiled 317 ms. torchao's tensor class is an eighth slower
compiled, and eager it takes 250 µs for a single row, where float32 takes 20. torch's older dynamic int8 layers are
nearly as fast as the compiled ones without compiling, but share one scale in a whole batch: they err four times as
much, and a reading would depend on what else is in its batch. Compiling float32 or bfloat16 brings 1 to 3 %.
benchmarks/quantized.py measures whole recognizers again.

Few weights do not pay: for a single row a layer of 192 × 768 takes 19 µs in float32 and 23 to 40 in int8. Such a
layer is multiplied in float32 by the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from glyphrun.models.layers import Attention, KeyValue, attend
from glyphrun.models.recognizer import Recognizer

PAYS = 2**18
"""Weights of a layer, or of all layers of an encoder's block, from which on int8 is faster than float32."""


class Int8Linear(nn.Module):
    """x · Wᵀ + b with 8-bit W, one scale an output, and x rounded to 8 bits with one scale a token."""

    def __init__(self, matrix: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """matrix: (outputs, inputs) int8; scale: (outputs,) float32; bias: (outputs,)."""
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.detach())
        self.out_features, self.in_features = matrix.shape

    @property
    def weight(self) -> Tensor:
        """W in the precision of the bias, for code that looks at a layer's weight."""
        bias = self.get_buffer("bias")
        return (self.get_buffer("matrix") * self.get_buffer("scale").unsqueeze(1)).to(bias.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, inputs) → (…, outputs)."""
        rows = x.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127  # (rows, 1)
        # torch has no public name for this product; torchao calls it by this one too.
        product = torch._int_mm((rows / scale).round().to(torch.int8), self.get_buffer("matrix").t())
        y = torch.addcmul(self.get_buffer("bias").float(), product * scale, self.get_buffer("scale"))
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Move everything, but keep the scales in float32: in half precision they would err as much as the rounding."""
        exact = self.get_buffer("scale")
        super()._apply(fn, recurse)
        self.scale = exact.to(self.get_buffer("matrix").device)
        return self


class Int8Attention(nn.Module):
    """``layers.Attention`` whose input projections are layers of their own."""

    def __init__(self, attention: Attention, matrix: Tensor, scale: Tensor) -> None:
        """matrix: (3 · D, D) int8, queries first; scale: (3 · D,) float32."""
        super().__init__()
        width, bias = matrix.shape[1], attention.in_proj_bias
        self.heads = attention.heads
        self.query = Int8Linear(matrix[:width], scale[:width], bias[:width])
        self.key_value = Int8Linear(matrix[width:], scale[width:], bias[width:])
        self.out_proj = attention.out_proj

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, D) → (B, heads, S, d)

    def keys_values(self, source: Tensor) -> KeyValue:
        """source: (B, S, D) → keys and values, each (B, heads, S, d)."""
        keys, values = self.key_value(source).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, query: Tensor, keys_values: KeyValue, mask: Tensor | None = None) -> Tensor:
        """query: (B, Q, D); mask: bool broadcastable to (B, heads, Q, S) → (B, Q, D)."""
        mixed = attend(self._split(self.query(query)), keys_values, mask)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        return projected


def compute_in_int8(recognizer: Recognizer, matrices: dict[str, tuple[Tensor, Tensor]], pays: int = PAYS) -> None:
    """Replace, in place, the layers that pay; matrices: names of weights with their int8 values and scales.

    All layers of an encoder's block are replaced, or none; any other layer is where it alone has ``pays`` weights.
    """
    sizes = {name: matrix.numel() for name, (matrix, _) in matrices.items()}
    in_blocks = {
        weight
        for name, _ in vision_blocks(recognizer, sizes, pays)
        for weight in sizes
        if weight.startswith(f"{name}.")
    }
    for weight, (matrix, scale) in matrices.items():
        name, _, own = weight.rpartition(".")
        parent, _, child = name.rpartition(".")
        module = recognizer.get_submodule(name)
        if weight not in in_blocks and sizes[weight] < pays:
            continue
        # Subclasses and torch's fused layers look at their weights by themselves.
        if type(module) is nn.Linear and not isinstance(recognizer.get_submodule(parent), nn.TransformerEncoderLayer):
            setattr(recognizer.get_submodule(parent), child, Int8Linear(matrix, scale, module.bias))
        elif type(module) is Attention and own == "in_proj_weight":
            setattr(recognizer.get_submodule(parent), child, Int8Attention(module, matrix, scale))


def vision_blocks(recognizer: Recognizer, sizes: dict[str, int], pays: int = PAYS) -> list[tuple[str, nn.Module]]:
    """The repeated blocks of the encoder that have at least ``pays`` of the weights whose sizes are given."""
    found: dict[str, nn.Module] = {}
    prefixes = recognizer.parts().get("vision", ())
    for name, module in recognizer.named_modules():
        inside = any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
        if not inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(name.startswith(f"{block}.") for block in found):
            continue
        for number, child in module.named_children():
            block = f"{name}.{number}"
            weights = sum(size for weight, size in sizes.items() if weight.startswith(f"{block}."))
            if weights >= pays and any(True for _ in child.children()):
                found[block] = child
    return list(found.items())


def int8_blocks(recognizer: Recognizer) -> list[nn.Module]:
    """The encoder's blocks that compute in int8."""
    sizes = {f"{name}.matrix": layer.out_features * layer.in_features for name, layer in _int8_layers(recognizer)}
    return [block for _, block in vision_blocks(recognizer, sizes, pays=1)]


def computes_in_int8(recognizer: nn.Module) -> bool:
    """True if any layer multiplies 8-bit integers."""
    return next(_int8_layers(recognizer), None) is not None


def _int8_layers(recognizer: nn.Module) -> Iterator[tuple[str, Int8Linear]]:
    return ((name, module) for name, module in recognizer.named_modules() if isinstance(module, Int8Linear))
