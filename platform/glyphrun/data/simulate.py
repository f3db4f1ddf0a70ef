"""The tracklet simulator: numbers on moving shirts, seen through a poor camera.

A tracklet is planned first (which number, which digit images, which seed) and rendered later, so that a plan can be
rendered anywhere and in any order with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from glyphrun.data.digits import UNSEEN_NUMBERS, VAL_NUMBERS, DigitPools
from glyphrun.data.sample import GROUP_SEPARATOR, Sample

Range = tuple[float, float]


class SimulatorSettings(BaseModel):
    """How hard the tracklets are. Lengths are shares of the crop's height, angles degrees, colours 0 to 255."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: tuple[int, int] = (3, 8)
    height: tuple[int, int] = (46, 72)  # pixels
    aspect: Range = (0.66, 0.78)  # width over height
    number_height: Range = (0.44, 0.60)
    shift: float = 0.07
    scale: Range = (0.88, 1.12)
    rotation: float = 13.0
    perspective: float = 0.16
    jitter: float = 0.25  # how much of the movement is sudden, from frame to frame
    motion_blur: Range = (0.0, 0.09)
    low_resolution: Range = (0.4, 1.0)  # the resolution that survives
    distant: float = Field(default=0.12, ge=0, le=1)  # share of tracklets that were seen from afar in every frame
    distant_resolution: Range = (0.29, 0.42)
    noise: Range = (2.0, 14.0)
    brightness: Range = (0.75, 1.15)
    contrast: int = Field(default=70, ge=0, le=255)  # least difference in luminance between number and shirt
    occlusion: float = Field(default=0.25, ge=0, le=1)  # share of readable frames with something in front
    unreadable_frame: float = Field(default=0.22, ge=0, le=1)
    unreadable_tracklet: float = Field(default=0.04, ge=0, le=1)
    one_digit: float = Field(default=0.15, ge=0, le=1)
    least_readable: int = Field(default=2, ge=1)
    jpeg_quality: int = Field(default=85, ge=1, le=100)


@dataclass(frozen=True)
class Tracklet:
    """The rendered frames, (H, W, 3) uint8 RGB of slightly different sizes, and which of them can be read."""

    frames: list[np.ndarray]
    legible: list[bool]


@dataclass(frozen=True)
class TrackletPlan:
    """All that a tracklet's rendering depends on, besides the settings."""

    sample_id: str
    split: str
    number: str
    readable: bool
    digit_images: tuple[int, ...]
    seed: int


def plan_tracklets(
    pools: DigitPools, counts: Mapping[str, int], settings: SimulatorSettings, seed: int
) -> list[TrackletPlan]:
    """Plan `counts` tracklets for each split, in the order of their ids.

    The split "unseen" holds the numbers of UNSEEN_NUMBERS alone and the others never hold one. VAL_NUMBERS are in "val"
    alone, where every fourth tracklet shows one. Within a split the
    numbers come as evenly as their count allows, and digit images only from the split's own pool.
    """
    pairs = [f"{number:02d}" for number in range(100) if f"{number:02d}" not in UNSEEN_NUMBERS + VAL_NUMBERS]
    plans: list[TrackletPlan] = []
    for split, count in sorted(counts.items()):
        # The split's name is in the seed: changing one split's count leaves the other splits as they were.
        rng = np.random.default_rng([seed, *split.encode()])
        if split == "unseen":
            numbers, readable = _evenly(UNSEEN_NUMBERS, count, rng), np.ones(count, bool)
        else:
            singles = round(count * settings.one_digit)
            fresh = count // 4 if split == "val" else 0
            numbers = _evenly(tuple("0123456789"), singles, rng) + _evenly(VAL_NUMBERS, fresh, rng)
            numbers += _evenly(tuple(pairs), count - singles - fresh, rng)
            readable = np.arange(count) >= round(count * settings.unreadable_tracklet)
        order, readable = rng.permutation(count), rng.permutation(readable)
        for position in range(count):
            number = numbers[order[position]]
            plans.append(
                TrackletPlan(
                    sample_id=f"{split}-{position:06d}",
                    split=split,
                    number=number,
                    readable=bool(readable[position]),
                    digit_images=tuple(int(rng.choice(pools[split][int(digit)])) for digit in number),
                    seed=int(rng.integers(2**63)),
                )
            )
    return plans


def render_plan(plan: TrackletPlan, glyphs: Sequence[np.ndarray] | np.ndarray, settings: SimulatorSettings) -> Sample:
    """Render a plan with its digit images (grey, ink bright) and encode the frames as JPEG."""
    rng = np.random.default_rng(plan.seed)
    tracklet = simulate_tracklet(plan.number, glyphs, settings, rng, readable=plan.readable)
    return Sample(
        sample_id=plan.sample_id,
        frames=tuple(_jpeg(frame, settings.jpeg_quality) for frame in tracklet.frames),
        text=plan.number if plan.readable else "",
        split=plan.split,
        group=GROUP_SEPARATOR.join(f"digit image {index}" for index in dict.fromkeys(plan.digit_images)),
        source="simulator",
        meta={"number": plan.number, "legible": tracklet.legible, "digit_images": list(plan.digit_images)},
    )


def simulate_tracklet(
    number: str,
    glyphs: Sequence[np.ndarray] | np.ndarray,
    settings: SimulatorSettings,
    rng: np.random.Generator,
    *,
    readable: bool = True,
) -> Tracklet:
    """Render a tracklet of `number` from one grey image a digit, ink bright, of any size.

    At least `settings.least_readable` frames of a readable tracklet can be read, and none of another.
    Raises ValueError when digits and glyphs differ in number.
    """
    if len(number) != len(glyphs) or len(glyphs) == 0:
        raise ValueError(f"The number {number!r} needs {len(number)} glyphs; {len(glyphs)} were given.")
    count = int(rng.integers(settings.frames[0], settings.frames[1] + 1))
    legible = np.zeros(count, bool)
    if readable:
        legible = rng.random(count) >= settings.unreadable_frame
        sure = rng.permutation(count)[: settings.least_readable]
        legible[sure] = True
    height = int(rng.integers(settings.height[0], settings.height[1] + 1))
    size = (height, round(height * rng.uniform(*settings.aspect)))
    shirt = _shirt(number, glyphs, settings, rng)
    camera = _camera(count, settings, rng)
    sharpness = settings.distant_resolution if rng.random() < settings.distant else settings.low_resolution
    frames = [_frame(shirt, size, camera[:, t], bool(legible[t]), sharpness, settings, rng) for t in range(count)]
    return Tracklet(frames, legible.tolist())


# The shirt is drawn once at this size and every frame is a view of it. It is about twice the size of a crop, with
# cloth beyond the crop's borders, so that a camera that moves sees cloth and not an edge.
CANVAS = 192
CROP_ON_CANVAS = 128  # the height of the canvas that a centred crop shows


@dataclass(frozen=True)
class _Shirt:
    printed: np.ndarray  # (CANVAS, CANVAS, 3) uint8, with the number
    blank: np.ndarray  # (CANVAS, CANVAS, 3) uint8, the same cloth without it
    number_box: tuple[float, float]  # the number's width and height on the canvas
    other: np.ndarray  # (3,) the colour of an opponent's shirt


def _evenly(numbers: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    rounds = -(-count // len(numbers))
    return [str(number) for _ in range(rounds) for number in rng.permutation(numbers)][:count]


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    done, encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"A frame of shape {frame.shape} could not be encoded as JPEG.")
    return encoded.tobytes()


def _luminance(colour: np.ndarray) -> float:
    return float(colour @ np.array([0.299, 0.587, 0.114]))


def _colours(least: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A shirt's colour and a number's, at least `least` apart in luminance; either may be the lighter."""
    while True:
        shirt = rng.uniform(15, 240, 3)
        # Kits favour plain white or black numbers; coloured ones are the harder minority.
        number = np.full(3, rng.choice([20.0, 240.0])) if rng.random() < 0.6 else rng.uniform(15, 240, 3)
        if abs(_luminance(shirt) - _luminance(number)) >= least:
            return shirt, number


def _cloth(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(CANVAS, CANVAS, 3) float32 cloth: folds, light from one side, and on some shirts stripes."""
    folds = cv2.resize(rng.normal(0, 9, (6, 6)).astype(np.float32), (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    slope = rng.uniform(-22, 22, 2)
    ramp = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    cloth = colour.astype(np.float32) + (folds + slope[0] * ramp + slope[1] * ramp[:, None])[..., None]
    if rng.random() < 0.25:
        wave = np.sin(np.arange(CANVAS) * (2 * np.pi / rng.uniform(18, 40)) + rng.uniform(0, 6)) > rng.uniform(0, 0.5)
        # Faint enough that a stripe is never mistaken for a stroke of the number.
        cloth = cloth + (wave * rng.uniform(-26, 26)).astype(np.float32)[None, :, None]
    return cloth


def _stencil(glyphs: Sequence[np.ndarray] | np.ndarray, height: int, rng: np.random.Generator) -> np.ndarray:
    """The glyphs side by side as one opacity map (height, W) float32 of 0 to 1."""
    parts: list[np.ndarray] = []
    for glyph in glyphs:
        rows, columns = np.flatnonzero(glyph.max(axis=1) > 60), np.flatnonzero(glyph.max(axis=0) > 60)
        if len(rows) == 0:
            raise ValueError("A digit image has no ink; glyphs are bright on black.")
        ink = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
        # Handwriting is slimmer than printed numbers, except that a narrow 1 must not become a block.
        width = round(min(height * ink.shape[1] / ink.shape[0], height * 0.85))
        part = cv2.resize(ink, (max(width, round(height * 0.12)), height), interpolation=cv2.INTER_CUBIC)
        parts += [part, np.zeros((height, round(height * rng.uniform(0.06, 0.18))), np.float32)]
    stencil = np.concatenate(parts[:-1], axis=1)
    # Soft edges of the scan become the crisp edges of print.
    return np.clip((stencil - 0.2) / 0.45, 0, 1)


def _shirt(
    number: str, glyphs: Sequence[np.ndarray] | np.ndarray, settings: SimulatorSettings, rng: np.random.Generator
) -> _Shirt:
    cloth_colour, ink = _colours(settings.contrast, rng)
    blank = _cloth(cloth_colour, rng)
    height = round(CROP_ON_CANVAS * rng.uniform(*settings.number_height))
    stencil = _stencil(glyphs, height, rng)
    widest = round(CROP_ON_CANVAS * settings.aspect[0] * 0.86)
    if stencil.shape[1] > widest:
        stencil = cv2.resize(stencil, (widest, height), interpolation=cv2.INTER_AREA)
    top, left = (CANVAS - stencil.shape[0]) // 2, (CANVAS - stencil.shape[1]) // 2
    opacity = np.zeros((CANVAS, CANVAS), np.float32)
    opacity[top : top + stencil.shape[0], left : left + stencil.shape[1]] = stencil
    printed = blank
    if rng.random() < 0.3:
        outline = cv2.dilate(opacity, np.ones((5, 5), np.uint8))[..., None]
        rim = np.clip(cloth_colour + (cloth_colour - ink) * 0.5, 0, 255).astype(np.float32)
        printed = printed * (1 - outline) + rim * outline
    printed = printed * (1 - opacity[..., None]) + ink.astype(np.float32) * opacity[..., None]
    return _Shirt(
        printed=np.clip(printed, 0, 255).astype(np.uint8),
        blank=np.clip(blank, 0, 255).astype(np.uint8),
        number_box=(stencil.shape[1], stencil.shape[0]),
        other=rng.uniform(15, 240, 3),
    )


def _camera(count: int, settings: SimulatorSettings, rng: np.random.Generator) -> np.ndarray:
    """(6, frames) of -1 to 1: a slow wave for each kind of movement, and a jitter on top of it.

    The rows are shift across, shift down, scale, rotation, perspective across and perspective down.
    """
    time = np.linspace(0, 1, count)
    speed, phase = rng.uniform(0.3, 1.2, (6, 1)), rng.uniform(0, 2 * np.pi, (6, 1))
    wave = np.sin(2 * np.pi * speed * time + phase) * rng.uniform(0.4, 1, (6, 1))
    return (1 - settings.jitter) * wave + settings.jitter * rng.uniform(-1, 1, (6, count))


def _view(
    size: tuple[int, int], pose: np.ndarray, settings: SimulatorSettings, offset: tuple[float, float]
) -> np.ndarray:
    """The 3 × 3 map from the canvas to a crop of `size`, for a pose of `_camera` and a further offset in crops."""
    height, width = size
    low, high = settings.scale
    zoom = height / CROP_ON_CANVAS * ((low + high) / 2 + (high - low) / 2 * pose[2])
    angle = np.deg2rad(settings.rotation * pose[3])
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
    tilt = settings.perspective * pose[4:6] / CANVAS
    centre = np.array([[1, 0, -CANVAS / 2], [0, 1, -CANVAS / 2], [0, 0, 1]])
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [tilt[0], tilt[1], 1]])
    across = width / 2 + (settings.shift * pose[0] + offset[0]) * height
    down = height / 2 + (settings.shift * pose[1] + offset[1]) * height
    return np.array([[1, 0, across], [0, 1, down], [0, 0, 1]]) @ turn @ centre


def _frame(
    shirt: _Shirt,
    size: tuple[int, int],
    pose: np.ndarray,
    legible: bool,
    sharpness: Range,
    settings: SimulatorSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    # A detector's box breathes from frame to frame, and the crop with it.
    height, width = (round(side * rng.uniform(0.95, 1.05)) for side in size)
    fault = "" if legible else str(rng.choice(["blurred", "covered", "outside", "turned"]))
    offset = (0.0, 0.0)
    if fault == "outside":
        # Leaves at most a sliver of the number, at one side or above.
        away = (width / height + shirt.number_box[0] / CROP_ON_CANVAS) / 2 * rng.uniform(0.85, 1.0)
        up = (1 + shirt.number_box[1] / CROP_ON_CANVAS) / 2 * rng.uniform(0.85, 1.0)
        offset = [(away, 0.0), (-away, 0.0), (0.0, up), (0.0, -up)][rng.integers(4)]
    canvas = shirt.blank if fault == "turned" else shirt.printed
    matrix = _view((height, width), pose, settings, offset)
    frame = cv2.warpPerspective(
        canvas, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    if fault == "covered" or (legible and rng.random() < settings.occlusion):
        frame = _occlude(frame, shirt, 0.95 if fault == "covered" else rng.uniform(0.08, 0.24), rng)
    blur = rng.uniform(*settings.motion_blur)
    resolution = rng.uniform(*sharpness)
    if fault == "blurred":
        blur, resolution = rng.uniform(0.28, 0.4), rng.uniform(0.09, 0.13)
    frame = _motion_blur(frame, blur * height, rng)
    small = (max(3, round(width * resolution)), max(3, round(height * resolution)))
    frame = cv2.resize(cv2.resize(frame, small, interpolation=cv2.INTER_AREA), (width, height))
    grain = rng.standard_normal(frame.shape, np.float32) * rng.uniform(*settings.noise)
    return np.clip(frame * np.float32(rng.uniform(*settings.brightness)) + grain, 0, 255).astype(np.uint8)


def _motion_blur(frame: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    taps = int(length) | 1
    if taps < 3:
        return frame
    angle = rng.uniform(0, np.pi)
    reach = (taps - 1) / 2
    kernel = np.zeros((taps, taps), np.float32)
    for step in np.linspace(-reach, reach, 2 * taps):
        kernel[round(reach + step * np.sin(angle)), round(reach + step * np.cos(angle))] = 1
    return cv2.filter2D(frame, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _occlude(frame: np.ndarray, shirt: _Shirt, share: float, rng: np.random.Generator) -> np.ndarray:
    """Put an arm, another shirt or a bar over about `share` of the crop's middle, where the number is."""
    height, width = frame.shape[:2]
    skin = np.array([224.0, 172.0, 138.0]) * rng.uniform(0.3, 1.05)
    colour = skin if rng.random() < 0.5 else shirt.other
    centre = np.array([width / 2, height / 2]) + rng.uniform(-0.18, 0.18, 2) * height * (share < 0.5)
    thickness = share * height * 0.8
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * height
    aside = np.array([-np.sin(angle), np.cos(angle)]) * thickness / 2
    # An arm tapers, and most end somewhere within the crop when they cover little.
    start = centre - along * (1 if share > 0.5 else rng.uniform(-0.2, 1))
    corners = np.array([start + aside, centre + along + aside * 0.8, centre + along - aside * 0.8, start - aside])
    covered = frame.copy()
    shade = tuple(float(value) for value in np.clip(colour, 0, 255))
    cv2.fillPoly(covered, [np.round(corners).astype(np.int32)], shade, lineType=cv2.LINE_AA)
    return covered
