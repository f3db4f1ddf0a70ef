"""PARSeq-Tiny through the engine against a float32 forward that recomputes its keys and values at every step.

    python benchmarks/parseq_engine.py                  # numbers of at most two digits
    python benchmarks/parseq_engine.py --max-length 25

Both read the same frames with the same random weights, in turns, and must read the same strings in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from material import random_parseq
from measure import command_line, in_turns, matmul_rate
from torch import Tensor

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import Precision, default_device, default_precision
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor
from glyphrun.models.parseq import PARSeq
from glyphrun.text import DIGITS, Codec

ENCODER_FLOPS = 2 * 0.757e9  # an image: two for each multiply-add of the encoder


def main() -> None:
    """Print the precision, images/s of both, the ratio and the floor that this machine's matrix products set."""
    asked = arguments()
    device = default_device()
    codec, processor = Codec(DIGITS, asked.max_length), ImageProcessor(height=32, width=128)
    recognizer = random_parseq(asked.seed, codec)
    published = copy.deepcopy(recognizer).to(device).eval()
    frames = torch.randint(0, 256, (asked.batch, 1, 3, 32, 128), dtype=torch.uint8)
    mask = torch.ones(asked.batch, 1, dtype=torch.bool)

    def recomputed() -> list[str]:
        ids = recomputing_forward(published, processor.normalise(frames[:, 0].to(device)))
        return [codec.decode(row) for row in ids.tolist()]

    def engine_in(precision: Precision) -> Callable[[], list[str]]:
        # Every frame counts, however doubtful: what is compared is reading, not voting.
        engine = Engine(
            recognizer, codec, processor, DecodeSettings(vote_floor=0.0), device=device, precision=precision
        )
        return lambda: [prediction.text for prediction in engine.read_batch(frames, mask)]

    strings = recomputed()
    if engine_in("float32")() != strings:
        raise SystemExit("the engine in float32 reads other strings than the forward that recomputes everything")
    precision = asked.precision or default_precision(device)
    engine = engine_in(precision)
    equal = sum(one == other for one, other in zip(engine(), strings, strict=True)) / len(strings)
    if precision == "float32" and equal < 1:
        raise SystemExit(f"only {equal:.1%} of the strings are equal")
    times = in_turns({"engine": engine, "recomputing": recomputed}, asked.repeats)
    rates = {name: asked.batch / seconds for name, seconds in times.items()}
    matmul = matmul_rate(device, precision)
    floor = ENCODER_FLOPS / matmul
    print(f"device {device}, precision {precision}, batch {asked.batch}, max length {asked.max_length}")
    print(f"strings: equal in float32, {equal:.1%} equal in {precision}, {len(set(strings))} different ones")
    print(f"engine {rates['engine']:.1f} images/s, recomputing float32 {rates['recomputing']:.1f} images/s")
    print(
        f"floor: {ENCODER_FLOPS / 1e9:.2f} GFLOPs of the encoder at {matmul / 1e9:.0f} GFLOP/s measured are "
        f"{floor * 1e3:.3f} ms an image; the engine takes {1e3 / rates['engine']:.3f} ms, "
        f"{1 / rates['engine'] / floor:.1f} times as long"
    )
    print(f"ratio {rates['engine'] / rates['recomputing']:.2f}")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = command_line(__doc__, repeats=9, precision=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=2)
    return parser.parse_args()


@torch.no_grad()
def recomputing_forward(recognizer: PARSeq, frames: Tensor) -> Tensor:
    """Greedy decoding as published: each step runs the decoder over the whole prefix and projects the memory anew.

    frames: (B, 3, H, W) float → token ids (B, L + 1), where the batch stops as soon as every row has ended.
    """
    memory, layers = recognizer.encoder(frames), recognizer.decoder.stack()  # (B, S, D)
    length = recognizer.max_length + 1
    causal = torch.ones(length, length, dtype=torch.bool, device=frames.device).tril()
    tokens = torch.full((len(frames), 1), recognizer.begin, device=frames.device)
    while True:
        embedded, count = recognizer.text_embed(tokens), tokens.shape[1]
        placed = embedded[:, 1:] + recognizer.pos_queries[:, : count - 1]
        content = torch.cat([embedded[:, :1], placed], dim=1)  # (B, count, D)
        query = recognizer.pos_queries[:, count - 1 : count].expand(len(frames), -1, -1)
        for number, layer in enumerate(layers, start=1):
            seen, keys_values = layer.content_keys_values(content), layer.cross_attn.keys_values(memory)
            query = layer.query_stream(query, seen, keys_values, None, None)
            if number < len(layers):
                content = layer.content_stream(content, seen, keys_values, causal[:count, :count], None)
        logits = recognizer.head(recognizer.decoder.norm(query))[:, 0]  # (B, V)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        if count == length or bool((tokens[:, 1:] == recognizer.end).any(1).all()):
            return tokens[:, 1:]


if __name__ == "__main__":
    main()
