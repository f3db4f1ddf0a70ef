"""Compiling what computes in int8, before the first reading, so that none waits for the compiler."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from glyphrun.engine import Engine
from glyphrun.images import stack_frames
from glyphrun.models.inference import int8_blocks

MANY = 16  # frames from which on torch convolves in another way


def compile_blocks(engine: Engine) -> None:
    """Compile the encoder's blocks of an int8 recognizer, in place, for batches of any size; others are left as they are.

    It takes up to a minute, and seconds where torch's own cache on disk has met the same blocks. Nothing is compiled later:
    what would need it, such as another number of threads, is computed without. So is everything, with a warning, where
    there is no C compiler.
    """
    blocks = int8_blocks(engine.recognizer)
    if not blocks:
        return
    for block in blocks:
        vars(block)["forward"] = torch.compile(block.forward, dynamic=True)
    try:
        _read_each_shape(engine)
    except Exception as error:  # compilers fail in many ways, and each leaves a recognizer that reads without them
        for block in blocks:
            del vars(block)["forward"]
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"this machine cannot compile the recognizer ({reason}), so it reads at about two thirds of the speed: "
            "install a C++ compiler such as g++",
            stacklevel=2,
        )
        return
    compiled_before = torch.compiler.set_stance("eager_on_recompile")
    vars(engine.recognizer)["encode"] = compiled_before(engine.recognizer.encode)


def _read_each_shape(engine: Engine) -> None:
    """Encode blank frames as differently as torch tells batches apart: alone, few, many, with padding and without."""
    processor = engine.processor
    height = min(processor.height, 64) if processor.varies else processor.height
    width = 2 * height if processor.varies else processor.width
    whole, part = (
        stack_frames([processor(np.zeros((height, columns, 3), np.uint8))], processor.padding)
        for columns in (width, width // 2 + 1)
    )
    for count in (1, 2, MANY):
        engine.embed([whole] * count)
        if processor.resize != "squeeze":
            engine.embed([part] + [whole] * (count - 1))
