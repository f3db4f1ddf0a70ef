"""A beam of 4 over our search against transformers' ``generate``, on the same TrOCR.

    python benchmarks/trocr_beam.py

The model is of a middling size with random weights. Such weights never end a text by themselves, so one feature is kept
for it: it rises along the text and begins at another height for every picture, and only the end token looks at it. So
the lengths of a batch spread evenly over roughly 3 to 40 tokens. Both write the same tokens or the script stops with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import command_line, in_turns
from torch import Tensor
from transformers import TrOCRConfig, TrOCRForCausalLM, VisionEncoderDecoderModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput

from glyphrun.decoding.search import search
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import default_device
from glyphrun.models.recognizer import Memory
from glyphrun.models.trocr import TrOCR
from glyphrun.models.trocr_settings import TrOCRSettings

WIDTH, SIDE, VOCABULARY, BEAMS = 256, 384, 1000, 4
SHORTEST, LONGEST, MAX_LENGTH = 3, 40, 64
STEEPNESS = 3.0  # by how much each token makes the end likelier, in nats
BEGIN = END = 2
PAD = 1


@dataclass(frozen=True)
class Subwords:
    """A codec's numbers; no text is needed here."""

    charset = ""
    num_tokens = VOCABULARY
    max_length = MAX_LENGTH
    begin = BEGIN
    end = END
    pad = PAD


def main() -> None:
    """Print lengths, milliseconds of both and their ratio, with the encoder and without."""
    parser = command_line(__doc__, repeats=9)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    device = default_device()
    frames = pictures(asked.batch)
    theirs: Any = random_model(frames)  # its own annotations refuse a device and a beam
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = TrOCR(TrOCRSettings(source=folder), Subwords()).to(device).eval()
    theirs, frames = theirs.to(device), frames.to(device)
    exists = torch.ones(asked.batch, 1, dtype=torch.bool, device=device)
    settings = DecodeSettings(search="beam", width=BEAMS, n_best=1)
    with torch.inference_mode():
        memory, features = ours.encode(frames.unsqueeze(1), exists), theirs.encoder(frames).last_hidden_state

    @torch.inference_mode()
    def searched(memory: Memory | None = None) -> list[tuple[int, ...]]:
        found = search(ours, memory or ours.encode(frames.unsqueeze(1), exists), settings)
        return [item[0].tokens for item in found]

    @torch.inference_mode()
    def generated(features: Tensor | None = None) -> list[tuple[int, ...]]:
        given = {"pixel_values": frames} if features is None else {"encoder_outputs": BaseModelOutput(features)}
        rows = theirs.generate(
            **given,
            num_beams=BEAMS,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            max_new_tokens=MAX_LENGTH + 1,
        ).tolist()
        return [tuple(row[1 : row.index(END, 1) if END in row[1:] else None]) for row in rows]

    written = searched()
    if written != generated() or written != searched(memory) or written != generated(features):
        raise SystemExit("our search and generate write different tokens")
    lengths = sorted(len(tokens) for tokens in written)
    print(f"device {device}, {torch.get_num_threads()} threads, float32, batch {asked.batch}, beam {BEAMS}")
    print(f"tokens: the same {len(set(written))} different texts from both, lengths {lengths}")
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "with the encoder": (searched, generated),
        "decoding alone": (lambda: searched(memory), lambda: generated(features)),
    }
    for name, (our_way, their_way) in ways.items():
        times = in_turns({"search": our_way, "generate": their_way}, asked.repeats)
        print(
            f"{name}: search {times['search'] * 1e3:.0f} ms, generate {times['generate'] * 1e3:.0f} ms, "
            f"ratio {times['generate'] / times['search']:.2f}"
        )


def pictures(items: int) -> Tensor:
    """Noise whose bright part grows from item to item: (N, 3, H, W)."""
    bright = torch.arange(SIDE) < torch.linspace(0, SIDE, items).unsqueeze(1)  # (N, W)
    return torch.where(bright, 1.0, -1.0)[:, None, None] + 0.3 * torch.randn(items, 3, SIDE, SIDE)


@torch.no_grad()
def random_model(frames: Tensor) -> VisionEncoderDecoderModel:
    """An encoder of 6 blocks and a decoder of 4 whose texts have the lengths asked for on these pictures."""
    vision = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=16,
        initializer_range=WIDTH**-0.5,
    )
    text = TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        decoder_layers=4,
        decoder_attention_heads=8,
        decoder_ffn_dim=4 * WIDTH,
        max_position_embeddings=MAX_LENGTH + 1,
        cross_attention_hidden_size=WIDTH,
        init_std=WIDTH**-0.5,
        tie_word_embeddings=False,
    )
    model = VisionEncoderDecoderModel(encoder=ViTModel(vision), decoder=TrOCRForCausalLM(text)).eval()
    decoder = model.decoder.model.decoder
    decoder.embed_tokens.weight.mul_(WIDTH**0.5)
    # Feature 0 holds how far the text is: nothing but the position writes to it, and the picture in the first layer.
    decoder.embed_tokens.weight[:, 0] = 0.0
    for layer in decoder.layers:
        for written in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
            written.weight.mul_(0.3)  # so that what feature 0 holds is still there after the last layer
            written.weight[0] = 0.0
    decoder.embed_positions.weight[:, 0] = torch.linspace(-2, 2, len(decoder.embed_positions.weight))
    features = model.encoder(frames).last_hidden_state
    first, head = decoder.layers[0].encoder_attn, model.decoder.output_projection.weight
    values = first.v_proj(features).mean(1)  # (N, D)
    first.out_proj.weight[0] = values[-1] - values[0]
    first.out_proj.weight[0] /= 10 * (first.out_proj.weight[0] @ values.T).std()
    head.mul_(12.0)  # peaked, so that a long text is not much less likely than a short one
    head[:, 0] = 0.0
    head[END] = 0.0
    head[END, 0] = 1.0
    tokens = torch.randint(END + 1, VOCABULARY, (len(frames), LONGEST))

    def hidden() -> Tensor:
        return decoder(tokens, encoder_hidden_states=features).last_hidden_state

    level = hidden()[:, :, 0]
    rise, reach = (level[:, -1] - level[:, 0]).mean() / (LONGEST - 1), level.mean(1).max() - level.mean(1).min()
    first.out_proj.weight[0] *= rise * (LONGEST - SHORTEST) / reach
    first.out_proj.bias[0] = -first.out_proj.weight[0] @ values.mean(0)
    reached = hidden()
    level, others = reached[:, :, 0], (reached @ head[END + 1 :].T).amax(-1).mean()
    last = decoder.layers[-1].final_layer_norm
    last.weight[0] = STEEPNESS / rise
    # Of LONGEST tokens the one in the middle is where a text of middling length would have (SHORTEST + 1) / 2 more.
    last.bias[0] = others - level.mean() * STEEPNESS / rise - STEEPNESS * (SHORTEST + 1) / 2
    return model


if __name__ == "__main__":
    main()
