"""PARSeq-Tiny through the engine against a float32 forward that recomputes its keys and values at every step.

    python benchmarks/parseq_engine.py                  # numbers of at most two digits
    python benchmarks/parseq_engine.py --max-length 25

Both read the same frames with the same random weights, in turns, and must read the same strings in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import default_device, default_precision
from glyphrun.engine import Engine
from glyphrun.images import ImageProcessor
from glyphrun.models.parseq import PARSeq
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.text import DIGITS, Codec

ENCODER_FLOPS = 2 * 0.757e9  # an image: two for each multiply-add of the encoder


def main() -> None:
    """Print the precision, images/s of both, the ratio and the floor that this machine's matrix products set."""
    asked = arguments()
    torch.manual_seed(asked.seed)
    device = default_device()
    codec, processor = Codec(DIGITS, asked.max_length), ImageProcessor(height=32, width=128)
    recognizer = build(recognizer_settings("parseq-tiny"), codec)
    assert isinstance(recognizer, PARSeq)
    spread_answers(recognizer)
    published = copy.deepcopy(recognizer).to(device).eval()
    frames = torch.randint(0, 256, (asked.batch, 1, 3, 32, 128), dtype=torch.uint8)
    mask = torch.ones(asked.batch, 1, dtype=torch.bool)

    def recomputed() -> list[str]:
        ids = recomputing_forward(published, processor.normalise(frames[:, 0].to(device)))
        return [codec.decode(row) for row in ids.tolist()]

    def engine_in(precision: str) -> Callable[[], list[str]]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], help="default: the hardware's best")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@torch.no_grad()
def spread_answers(recognizer: PARSeq) -> None:
    """Random weights answer alike whatever they are shown; larger queries and features make images differ."""
    recognizer.pos_queries.mul_(40)
    recognizer.text_embed.embedding.weight.mul_(10)
    for layer in recognizer.decoder.layers:
        layer.cross_attn.in_proj_weight.mul_(4)
        layer.cross_attn.out_proj.weight.mul_(4)


@torch.no_grad()
def recomputing_forward(recognizer: PARSeq, frames: Tensor) -> Tensor:
    """Greedy decoding as published: each step runs the decoder over the whole prefix and projects the memory anew.

    frames: (B, 3, H, W) float → token ids (B, L + 1), where the batch stops as soon as every row has ended.
    """
    memory = recognizer.encoder(frames)  # (B, S, D)
    length = recognizer.max_length + 1
    causal = torch.ones(length, length, dtype=torch.bool, device=frames.device).tril()
    tokens = torch.full((len(frames), 1), recognizer.begin, device=frames.device)
    while True:
        embedded, count = recognizer.text_embed(tokens), tokens.shape[1]
        placed = embedded[:, 1:] + recognizer.pos_queries[:, : count - 1]
        content = torch.cat([embedded[:, :1], placed], dim=1)  # (B, count, D)
        query = recognizer.pos_queries[:, count - 1 : count].expand(len(frames), -1, -1)
        for number, layer in enumerate(recognizer.decoder.layers, start=1):
            seen, keys_values = layer.content_keys_values(content), layer.cross_attn.keys_values(memory)
            query = layer.query_stream(query, seen, keys_values, None, None)
            if number < len(recognizer.decoder.layers):
                content = layer.content_stream(content, seen, keys_values, causal[:count, :count], None)
        logits = recognizer.head(recognizer.decoder.norm(query))[:, 0]  # (B, V)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        if count == length or bool((tokens[:, 1:] == recognizer.end).any(1).all()):
            return tokens[:, 1:]


def in_turns(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy moment of the machine falls on both."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            synchronise()
            started = perf_counter()
            way()
            synchronise()
            times[name].append(perf_counter() - started)
    return {name: median(seconds) for name, seconds in times.items()}


def matmul_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    if precision != "float32":
        left, right = left.to(getattr(torch, precision)), right.to(getattr(torch, precision))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(8):
            synchronise()
            started = perf_counter()
            left @ right
            synchronise()
            best = min(best, perf_counter() - started)
    return 2 * size**3 / best


def synchronise() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
