"""Weights in less space: int8 matrices with a scale for each row, or half-precision floats, as plain named tensors.

A stored recognizer has the names of its state dict. A matrix of 8-bit integers has its scales beside it under its own name
with SCALE added; every other matrix is a half-precision float, and vectors (norms, biases, running statistics) stay
float32: they are a hundredth of the bytes, and a variance does not fit into half precision.

int8 is symmetric, one scale for each output of a layer, rounded by torchao. Activations are quantized while the
recognizer reads, from each token's own largest value, so no sample of the training data is needed to calibrate.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from glyphrun.device import Precision, default_precision
from glyphrun.models.inference import compute_in_int8, computes_in_int8
from glyphrun.models.notices import without_torchao_notices
from glyphrun.models.recognizer import Recognizer

Method = Literal["float32", "float16", "bfloat16", "int8"]
SCALE = "_scale"
SMALLEST = 2**12  # numbers of a matrix; smaller ones save nothing worth it, and often they are what decides the answer


def stored(recognizer: Recognizer, method: Method) -> dict[str, Tensor]:
    """The recognizer's tensors as a method stores them; float32 leaves them as they are.

    Raises ValueError if there is nothing to quantize, a value does not fit into float16, or layers compute in int8 already.
    """
    if computes_in_int8(recognizer):
        raise ValueError("this recognizer computes in int8 already: store the one that it was made from")
    state = {name: value.detach().cpu().contiguous() for name, value in recognizer.state_dict().items()}
    if method == "float32":
        return state
    matrices = linear_weights(recognizer) if method == "int8" else []
    if method == "int8" and not matrices:
        raise ValueError(
            f"{type(recognizer).__name__} has no linear layer of {SMALLEST:,} weights or more, so int8 would change "
            "nothing: choose float16 or bfloat16"
        )
    half = torch.bfloat16 if method == "bfloat16" else torch.float16
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in matrices:
            tensors[name], tensors[name + SCALE] = rounded(value)
        elif value.dtype != torch.float32 or value.ndim < 2:
            tensors[name] = value
        elif bool(value.to(half).isfinite().all()):
            tensors[name] = value.to(half)
        elif method == "int8":
            tensors[name] = value
        else:
            raise ValueError(f"{name} has values that float16 cannot hold (more than 65,504): choose bfloat16")
    return tensors


def restored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A float32 state dict out of stored tensors."""
    matrices = int8_matrices(tensors)
    scales = {name + SCALE for name in matrices}
    state = {name: value for name, value in tensors.items() if name not in scales}
    for name, value in state.items():
        if name in matrices:
            state[name] = value * matrices[name][1].unsqueeze(1)
        elif value.dtype in (torch.float16, torch.bfloat16):
            state[name] = value.float()
    return state


def int8_matrices(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Each 8-bit matrix (outputs, inputs) among stored tensors with its scales (outputs,)."""
    return {
        name: (value, tensors[name + SCALE])
        for name, value in tensors.items()
        if value.dtype == torch.int8 and name + SCALE in tensors
    }


def precision_of(method: Method, device: torch.device) -> Precision:
    """What a stored recognizer is read in: its own precision where the hardware has it, else float32.

    Whatever is not int8 in an int8 recognizer is read in the best precision of the hardware.
    """
    if method in ("float32", "int8"):
        return default_precision(device)
    return cast(Precision, method) if computes_in(method, device) else "float32"


def computes_in(method: Method, device: torch.device) -> bool:
    """True if recognizers are computed in these numbers on the device: it has the instructions, or they would be slower.

    8-bit products must add up without overflow, which on x86 takes the VNNI instructions or AMX. A GPU reads int8 weights
    in its own half precision.
    """
    if method == "float32":
        return True
    if device.type == "cuda":
        return method == "float16" or (method == "bfloat16" and torch.cuda.get_device_capability(device) >= (8, 0))
    instructions = {
        "int8": ("avx_vnni", "avx512_vnni", "amx_int8"),
        "bfloat16": ("avx512_bf16", "amx_bf16"),
        "float16": ("amx_fp16",),
    }
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in instructions[method])


def quantize_recognizer(recognizer: Recognizer, device: torch.device | None = None) -> Recognizer:
    """A copy as an int8 bundle gives it back on a device (the processor by default)."""
    quantized = copy.deepcopy(recognizer)
    load_stored(quantized, stored(recognizer, "int8"), device or torch.device("cpu"))
    return quantized


def load_stored(recognizer: Recognizer, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Give a recognizer its stored weights, in place; large layers compute in int8 if their weights are and the device can.

    Raises RuntimeError if the tensors are those of another recognizer.
    """
    recognizer.load_state_dict(restored(tensors))
    matrices = int8_matrices(tensors)
    if matrices and computes_in("int8", device):
        compute_in_int8(recognizer, matrices)


def linear_weights(recognizer: nn.Module) -> list[str]:
    """Names of the matrices of at least SMALLEST numbers that inputs are multiplied by."""
    found = []
    for name, module in recognizer.named_modules():
        for own in ("weight",) if isinstance(module, nn.Linear) else ("in_proj_weight",):
            matrix = getattr(module, own, None)
            if isinstance(matrix, Tensor) and matrix.ndim == 2 and matrix.numel() >= SMALLEST:
                found.append(f"{name}.{own}")
    return found


def rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) float → the nearest int8 and the scale of each output, float32."""
    with without_torchao_notices():
        from torchao.quantization import Int8Tensor, PerRow  # here: it takes seconds, and reading needs none of it
    quantized = Int8Tensor.from_hp(matrix.float(), PerRow())
    return cast(Tensor, quantized.qdata), cast(Tensor, quantized.scale).flatten()
