"""Text lines of many widths in padded batches against one at a time, through the same engine.

    python benchmarks/line_batches.py
    python benchmarks/line_batches.py --bundle runs/handwriting/winner

Lines of the handwriting_fr data set are read as they come: the engine sorts them by width, pads and masks each batch, and
gives the readings back in order. Both ways must read the same strings. Weights are random from a fixed seed, peaked as
trained ones are, with a blank at three of four places; or those of a bundle.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from pathlib import Path
from statistics import median

import torch
from material import random_recognizer
from measure import command_line, in_turns, share_read_alike, together_and_alone

from glyphrun.bundle import load_engine
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.engine import Engine
from glyphrun.models.line_ctc import LineCTC
from glyphrun.recipe import processor_for
from glyphrun.text import Codec, normalise

RECOGNIZERS = ("line-ctc-nano", "line-ctc-small")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "handwriting_fr.zip"
PEAK = 20.0  # by how much random logits are spread, so that one character stands out at each place
BLANKS = 0.75


def main() -> None:
    """Print lines/s of both ways and their ratio, from decoded pixels and from encoded images."""
    parser = command_line(__doc__, repeats=5, precision=True)
    parser.add_argument("--data", type=Path, default=DATA, help="handwriting_fr.zip (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="read with a trained bundle instead of random weights")
    parser.add_argument("--recognizer", choices=RECOGNIZERS, nargs="+", default=RECOGNIZERS)
    parser.add_argument("--beam", type=int, default=1, help="width of the prefix beam; 1: the best path")
    parser.add_argument("--lines", type=int, default=256)
    asked = parser.parse_args()
    if not asked.data.is_file():
        print(f"nothing was measured: {asked.data} is absent; give the path of handwriting_fr.zip with --data")
        return
    images, charset, longest = lines(asked.data, asked.lines)
    decode = DecodeSettings(search="beam", width=asked.beam) if asked.beam > 1 else DecodeSettings()
    if asked.bundle:
        trained = load_engine(asked.bundle, precision=asked.precision)
        engine = Engine(trained.recognizer, trained.codec, trained.processor, decode, precision=trained.precision)
        compare(engine, images, asked.bundle.name, asked.repeats)
        return
    for name in asked.recognizer:
        codec = Codec(charset, longest)
        model = random_recognizer(name, asked.seed, codec)
        engine = Engine(model, codec, processor_for(model.settings), decode, precision="float32")
        make_peaked(engine, images[:16])
        if asked.precision != "float32":
            engine = Engine(model, codec, engine.processor, decode, precision=asked.precision)
        compare(engine, images, name, asked.repeats)


def lines(archive: Path, count: int) -> tuple[list[bytes], str, int]:
    """The encoded images of some lines of the val split, the data set's charset and its longest text."""
    with zipfile.ZipFile(archive) as opened:
        table = io.TextIOWrapper(opened.open("labels.tsv"), encoding="utf-8", newline="")
        rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
        chosen = [row["file"] for row in rows if row["split"] == "val"][:count]
        if len(chosen) < count:
            sys.exit(f"{archive} has {len(chosen)} lines of val: ask for at most as many --lines")
        images = [opened.read(file) for file in chosen]
    texts = [normalise(row["text"]) for row in rows]
    return images, "".join(sorted(set("".join(texts)))), max(map(len, texts))


@torch.inference_mode()
def make_peaked(engine: Engine, images: list[bytes]) -> None:
    """Spread a fresh head's logits until one stands out, and raise the blank until it wins at most places."""
    model = engine.recognizer
    assert isinstance(model, LineCTC)
    model.head.weight.mul_(PEAK)
    margins = []
    for image in images:
        pixels = torch.from_numpy(engine.prepare([image], name="line").pixels).unsqueeze(0).to(engine.device)
        exists = torch.ones(1, 1, dtype=torch.bool, device=engine.device)
        log_probs, _ = model.emissions(model.encode(engine.processor.normalise(pixels), exists))
        margins.append((log_probs[..., 1:].amax(-1) - log_probs[..., 0]).flatten())
    model.head.bias[0] += torch.cat(margins).quantile(BLANKS)


def compare(engine: Engine, images: list[bytes], name: str, repeats: int) -> None:
    """Print the strings' share that is equal, and the times; ends the program if float32 readings differ."""
    stacks = [engine.prepare([image], name=f"line {number}") for number, image in enumerate(images)]
    from_pixels = together_and_alone(engine.read_prepared, stacks)
    together = from_pixels["batch"]()
    equal = share_read_alike(name, together, from_pixels["single"](), engine.precision)
    lengths = [len(prediction.text) for prediction in together]
    if not median(lengths):
        sys.exit(f"{name}: most readings are empty, so nothing was compared: give a bundle that reads these lines")
    widths = [stack.shape[2] for stack in stacks]
    print(
        f"{name}: device {engine.device}, {torch.get_num_threads()} threads, precision {engine.precision}, search "
        f"{engine.settings.search}; {len(stacks)} lines {min(widths)} to {max(widths)} pixels wide, "
        f"{equal:.1%} of the readings equal, {median(lengths):.0f} characters in the middle"
    )
    from_bytes = together_and_alone(engine.read, [[image] for image in images])
    for start, ways in {"from pixels": from_pixels, "from bytes": from_bytes}.items():
        times = in_turns(ways, repeats)
        print(
            f"{name}, {start}: batches {len(stacks) / times['batch']:.1f} lines/s, one at a time "
            f"{len(stacks) / times['single']:.1f} lines/s, ratio {times['single'] / times['batch']:.2f}"
        )


if __name__ == "__main__":
    main()
