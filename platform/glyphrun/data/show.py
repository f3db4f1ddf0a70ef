"""A contact sheet: what is in a data set, at one look."""

from __future__ import annotations

import importlib.util
import os
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from glyphrun.data.sample import DatasetError, Sample, iterate_samples, read_card
from glyphrun.images import decode_image

FRAME_HEIGHT = 88
MAX_FRAMES = 8
SHEET_WIDTH = 1480
GAP, MARGIN, PADDING = 12, 24, 10

BACKGROUND, CARD, BORDER = (244, 245, 247), (255, 255, 255), (218, 221, 227)
STRONG, FAINT = (24, 28, 36), (112, 120, 134)


@dataclass(frozen=True)
class _Card:
    picture: Image.Image
    width: int
    height: int


def contact_sheet(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    count: int = 24,
    seed: int = 0,
) -> Path:
    """Write a PNG of `count` samples drawn by `seed`, each a card with its frames, its text and its id.

    A tracklet shows its first frames side by side, small frames enlarged pixel by pixel. Raises DatasetError when
    there is nothing to show.
    """
    samples = _draw(folder, split, count, seed)
    if not samples:
        raise DatasetError(f"{folder} has no samples to show{f' in split {split!r}' if split else ''}.")
    card = read_card(folder)
    rows = _rows([_card(sample) for sample in samples])
    header = 64
    height = header + sum(max(item.height for item in row) + GAP for row in rows) + MARGIN - GAP
    sheet = Image.new("RGB", (SHEET_WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 18), card.name, STRONG, font=_font(24))
    where = f"{len(samples)} of {card.counts[split] if split else sum(card.counts.values())} samples"
    pen.text(
        (SHEET_WIDTH - MARGIN, 24),
        f"{split or 'all splits'}, {where}",
        FAINT,
        font=_font(15),
        anchor="ra",
    )
    top = header
    for row in rows:
        left = MARGIN
        for item in row:
            sheet.paste(item.picture, (left, top))
            left += item.width + GAP
        top += max(item.height for item in row) + GAP
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    sheet.save(aside, format="PNG")
    os.replace(aside, path)
    return path


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font has no accents; matplotlib, which the digits' package needs, carries DejaVu.
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def _draw(folder: str | os.PathLike[str], split: str | None, count: int, seed: int) -> list[Sample]:
    """A reservoir sample in the data set's order: one pass, whatever the data set's size."""
    chance = random.Random(seed)
    kept: list[tuple[int, Sample]] = []
    for position, sample in enumerate(iterate_samples(folder, split)):
        if len(kept) < count:
            kept.append((position, sample))
        elif (place := chance.randrange(position + 1)) < count:
            kept[place] = (position, sample)
    return [sample for _, sample in sorted(kept, key=lambda item: item[0])]


def _thumbnail(frame: bytes, name: str) -> Image.Image:
    image = Image.fromarray(decode_image(frame, name=name))
    room = SHEET_WIDTH - 2 * MARGIN - 2 * PADDING
    scale = min(FRAME_HEIGHT / image.height, room / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Smooth enlargement would hide what the recognizer really gets.
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _card(sample: Sample) -> _Card:
    frames = [_thumbnail(frame, sample.sample_id) for frame in sample.frames[:MAX_FRAMES]]
    text_font, small_font = _font(20), _font(12)
    text, colour = {None: ("no label", FAINT), "": ("not readable", FAINT)}.get(sample.text, (sample.text, STRONG))
    more = f", {len(sample.frames)} frames" if len(sample.frames) > 1 else ""
    note = f"{sample.sample_id}{more}"
    room = SHEET_WIDTH - 2 * MARGIN - 2 * PADDING
    text, note = _shortened(str(text), text_font, room), _shortened(note, small_font, room)
    inner = max(
        sum(frame.width for frame in frames) + 4 * max(0, len(frames) - 1),
        round(text_font.getlength(text)),
        round(small_font.getlength(note)),
    )
    width, height = min(inner, room) + 2 * PADDING, FRAME_HEIGHT + 54 + 2 * PADDING
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), 6, CARD, BORDER)
    left = PADDING
    for frame in frames:
        picture.paste(frame, (left, PADDING))
        left += frame.width + 4
    pen.text((PADDING, PADDING + FRAME_HEIGHT + 6), text, colour, font=text_font)
    pen.text((PADDING, PADDING + FRAME_HEIGHT + 36), note, FAINT, font=small_font)
    return _Card(picture, width, height)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _rows(cards: list[_Card]) -> list[list[_Card]]:
    """Cards in order, as many to a row as fit."""
    rows: list[list[_Card]] = []
    room = 0
    for card in cards:
        if not rows or card.width > room:
            rows.append([])
            room = SHEET_WIDTH - 2 * MARGIN
        rows[-1].append(card)
        room -= card.width + GAP
    return rows
