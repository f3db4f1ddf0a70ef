"""A beam of 5 over PARSeq-Tiny with its caches against the same beam without: texts of 25 characters.

    python benchmarks/beam_caches.py

Both run the same search from the same encoded images, in turns, and must read the same strings. Without caches every step
projects the memory to keys and values for every beam and runs the decoder over the whole prefix, as ``generate`` does
with ``use_cache=False`` and as PARSeq was published. Weights are random, and the end of a text is made improbable, so that
every text is as long as it may be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from material import random_parseq
from measure import command_line, in_turns
from torch import Tensor

from glyphrun.decoding.beam import beam
from glyphrun.device import default_device
from glyphrun.models.parseq import PARSeq
from glyphrun.models.recognizer import Memory
from glyphrun.text import Codec

LATIN = "".join(map(chr, range(33, 127)))  # the 94 characters of the published models


def main() -> None:
    """Print milliseconds a batch of both and their ratio, of the search alone and with the encoder."""
    parser = command_line(__doc__, repeats=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=25)
    asked = parser.parse_args()
    device, codec = default_device(), Codec(LATIN, asked.max_length)
    recognizer = random_parseq(asked.seed, codec)
    with torch.no_grad():
        recognizer.head.weight.mul_(8)  # surer of itself: among answers that are as good as tied, rounding would choose
        recognizer.head.bias[recognizer.end] -= 100
    recognizer = recognizer.to(device).eval()
    frames = torch.randn(asked.batch, 1, 3, 32, 128, device=device)
    mask = torch.ones(asked.batch, 1, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def encode() -> Memory:
        return recognizer.encode(frames, mask)

    memory = encode()

    @torch.inference_mode()
    def read(model: Any) -> list[list[str]]:  # Generative cannot say that each has a state of its own
        found = beam(model, memory, asked.width, asked.width)
        return [[codec.decode(hypothesis.tokens) for hypothesis in item] for item in found]

    forgetful = Forgetful(recognizer)
    strings = read(recognizer)
    if read(forgetful) != strings:
        raise SystemExit("the beam with caches reads other strings than the beam without")
    lengths = [len(text) for item in strings for text in item]
    times = in_turns(
        {"with": lambda: read(recognizer), "without": lambda: read(forgetful), "encoder": encode}, asked.repeats
    )
    milliseconds = {name: seconds * 1e3 for name, seconds in times.items()}
    best = {item[0] for item in strings}
    print(
        f"device {device}, float32, batch {asked.batch}, beam {asked.width}, texts of {min(lengths)} to {max(lengths)}"
    )
    print(f"all {len(lengths)} strings of the n-best lists are equal, {len(best)} of the best ones different")
    print("search {with:.1f} ms with caches, {without:.1f} ms without; encoder {encoder:.1f} ms".format(**milliseconds))
    encoder = milliseconds["encoder"]
    both = [milliseconds[name] + encoder for name in ("without", "with")]
    print(f"ratio {milliseconds['without'] / milliseconds['with']:.2f}, with the encoder {both[0] / both[1]:.2f}")


@dataclass(frozen=True)
class Prefixes:
    """All that is known without caches: the features of every row's item (B·width, S, D) and what it has read."""

    features: Memory
    tokens: Tensor
    width: int

    def reorder(self, beams: Tensor) -> Prefixes:
        """beams: (B·width,) long; the features of an item are the same for all its beams."""
        return replace(self, tokens=self.tokens[beams])

    def keep(self, items: Tensor) -> Prefixes:
        """items: (K,) long."""
        rows = (items.unsqueeze(1) * self.width + torch.arange(self.width, device=items.device)).flatten()
        features = replace(self.features, tokens=self.features.tokens[rows])
        return Prefixes(features, self.tokens[rows], self.width)


class Forgetful:
    """A PARSeq that computes everything anew in every step."""

    def __init__(self, recognizer: PARSeq) -> None:
        self.recognizer = recognizer
        self.begin, self.end, self.max_length = recognizer.begin, recognizer.end, recognizer.max_length

    def start(self, memory: Memory, width: int) -> Prefixes:
        """width: beams kept per item."""
        features = replace(memory, tokens=memory.tokens.repeat_interleave(width, dim=0))
        nothing = torch.empty(len(features.tokens), 0, dtype=torch.long, device=memory.tokens.device)
        return Prefixes(features, nothing, width)

    def step(self, state: Prefixes, tokens: Tensor) -> tuple[Tensor, Prefixes]:
        """tokens: (B·width,) long → log-probabilities (B·width, V)."""
        model, prefix = self.recognizer, torch.cat([state.tokens, tokens.unsqueeze(1)], dim=1)
        count = prefix.shape[1]
        embedded = model.text_embed(prefix)
        content = torch.cat([embedded[:, :1], embedded[:, 1:] + model.pos_queries[:, : count - 1]], dim=1)
        decoded = model.decoder(
            model.pos_queries[:, count - 1 : count].expand(len(prefix), -1, -1),
            content,
            model.decoder.memory_keys_values(state.features),
            None,
            torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril(),
            None,
        )
        return model.head(decoded).squeeze(1).log_softmax(-1), replace(state, tokens=prefix)


if __name__ == "__main__":
    main()
