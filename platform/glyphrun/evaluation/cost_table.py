"""The cost table: what each recognizer takes in each precision, beside the baseline and what others published."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.table import Table

from glyphrun.compiled import compile_blocks
from glyphrun.decoding.settings import DecodeSettings
from glyphrun.device import Precision, available_cores, default_device
from glyphrun.engine import Engine
from glyphrun.evaluation.cost import count_encoder_gflops, count_gflops, count_parameters
from glyphrun.evaluation.published import PUBLISHED
from glyphrun.images import FrameStack, stack_frames
from glyphrun.memory import OutOfMemory
from glyphrun.models.quantize import precision_of, quantize_recognizer
from glyphrun.models.zoo import build, recognizer_settings
from glyphrun.recipe import codec_for, processor_for

BASELINE = "parseq-small-temporal"
BATCHES = (2, 4, 8, 16, 32, 64, 128)
CostPrecision = Literal["float32", "bfloat16", "float16", "int8"]


class CostSettings(BaseModel):
    """What is measured, on the GPU where there is one if no device is named.

    Sequences of ``frames`` frames with texts of up to max_length characters of the charset.

    windows: how many windows of ``frames`` frames a tracklet is read in, without overlap. baseline: what speeds relate to.
    seconds: for how long each of these times is taken.
    sources: folders of hub models by the recognizer's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] | None = None
    frames: int = Field(8, ge=1)
    windows: int = Field(4, ge=1)
    baseline: str = BASELINE
    seconds: float = Field(1.0, ge=0)
    sources: dict[str, str] = {}
    charset: str = "0123456789"
    max_length: int = Field(2, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Counts:
    """Of a recognizer at its published size, where there is one: parameters, and multiply-adds in 10⁹ a sequence.

    torch counts two operations for each multiply-add; encoder_multiply_adds are those of the encoder alone.
    """

    parameters: int
    multiply_adds: float
    encoder_multiply_adds: float


@dataclass(frozen=True)
class Cost:
    """One row, with what was counted (``Counts``) and what was measured.

    peak_mib: memory that loading and reading added; ms: a sequence alone, median; per_second: sequences a second in
    batches of best_batch; tracklet_ms: a tracklet read in windows. relative: times as many sequences a second as the
    baseline in float32.
    """

    name: str
    precision: CostPrecision
    parameters: int
    multiply_adds: float
    encoder_multiply_adds: float
    peak_mib: float
    ms: float
    per_second: float
    best_batch: int
    tracklet_ms: float
    relative: float = 1.0


def cost_table(
    names: Sequence[str],
    precisions: Sequence[str],
    settings: CostSettings,
    progress: Callable[[str], None] | None = None,
) -> list[Cost]:
    """A row for each name in each precision, the baseline in float32 first. Weights are random: only speed is measured.

    Every row is measured in a process of its own, so that one's memory is not another's. Raises ValueError for a name that
    is not known, listing the near ones, HubError for a hub model that cannot be had, and RuntimeError naming the row that
    could not be measured.
    """
    for name in (settings.baseline, *names):
        recognizer_settings(name)
    for name in settings.sources:
        if name not in (settings.baseline, *names):
            raise ValueError(f"--source {name}=…: {name} is not among what is measured, {', '.join(names)}")
    known = get_args(CostPrecision)
    unknown = [precision for precision in precisions if precision not in known]
    if unknown:
        raise ValueError(f"no precision is called {unknown[0]!r}: choose from {', '.join(known)}")
    wanted = [(name, cast(CostPrecision, precision)) for name in names for precision in precisions]
    base_row: tuple[str, CostPrecision] = (settings.baseline, "float32")
    rows = [base_row, *(row for row in wanted if row != base_row)]
    counts: dict[str, Counts] = {}
    for name in dict.fromkeys(name for name, _ in rows):
        # All are counted first: what cannot be built, such as a hub model without a connection, is told at once.
        if progress:
            progress(f"counting {name}")
        counts[name] = count(name, settings)
    measured: list[Cost] = []
    for name, precision in rows:
        if progress:
            progress(f"{name} in {precision}")
        measured.append(_in_a_process(name, precision, settings, counts[name]))
    base = measured[0].per_second
    return [Cost(**{**asdict(row), "relative": row.per_second / base}) for row in measured]


def cost_json(rows: Sequence[Cost], settings: CostSettings) -> dict[str, Any]:
    """The table as one JSON object; what was published stands apart from what was measured."""
    on_gpu = _device(settings).type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else processor_name()
    return {
        "device": device,
        "threads": None if on_gpu else available_cores(),
        "settings": settings.model_dump(),
        "measured": [asdict(row) for row in rows],
        "published": {name: asdict(PUBLISHED[published_name(name)]) for name in _published_among(rows)},
    }


def shown(rows: Sequence[Cost], settings: CostSettings) -> Table:
    """The table for a terminal; published figures stand in rows of their own, marked as such."""
    where = cost_json([], settings)["device"]
    table = Table(
        title=f"{where}: sequences of {settings.frames} frames, tracklets of {settings.windows} windows; M: 10⁶ "
        "parameters, G: 10⁹ multiply-adds a sequence, ×: times the baseline's sequences/s",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for heading in ("recognizer", "precision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("M", "G", "MiB", "ms", "/s", "batch", "tracklet\nms", "×"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.precision,
            f"{row.parameters / 1e6:.2f}",
            f"{row.multiply_adds:.3f}",
            f"{row.peak_mib:.0f}",
            f"{row.ms:.1f}",
            f"{row.per_second:.1f}",
            str(row.best_batch),
            f"{row.tracklet_ms:.1f}",
            f"{row.relative:.2f}" if row.relative >= 0.1 else f"{row.relative:.2g}",
        )
    for name in _published_among(rows):
        said = PUBLISHED[published_name(name)]
        speedup = _range(said.speedup) if said.speedup else "1"
        figures = [
            _range(said.parameters),
            _range(said.multiply_adds),
            "",
            f"T4 {_range(said.t4_ms)}",
            "",
            "",
            "",
            speedup,
        ]
        table.add_row(published_name(name), "published", *figures, style="dim")
    return table


def published_name(name: str) -> str:
    """The name that figures were published under."""
    return name.removesuffix("-temporal")


def _published_among(rows: Sequence[Cost]) -> list[str]:
    return [name for name in dict.fromkeys(row.name for row in rows) if published_name(name) in PUBLISHED]


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}–{ends[1]:g}"


def processor_name() -> str:
    """The processor as the system calls it, "" if it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def count(name: str, settings: CostSettings) -> Counts:
    """As others counted a recognizer, where they did, else as it is measured; on the processor in float32."""
    said = PUBLISHED.get(published_name(name))
    charset, max_length = (said.charset, said.max_length) if said else (settings.charset, settings.max_length)
    frames = said.frames if said else settings.frames
    chosen = _settings_of(name, settings)
    codec = codec_for(chosen, charset, [charset[0] * max_length])
    cpu = torch.device("cpu")
    engine = Engine(build(chosen, codec), codec, processor_for(chosen), device=cpu, precision="float32")
    return Counts(
        parameters=count_parameters(engine),
        multiply_adds=count_gflops(engine, frames) / 2,
        encoder_multiply_adds=count_encoder_gflops(engine, frames) / 2,
    )


def measure(name: str, precision: CostPrecision, settings: CostSettings, counts: Counts) -> Cost:
    """One row, measured in this process; peak memory counts from here. counts: of the same name."""
    device = _device(settings)
    torch.set_num_threads(available_cores())
    torch.manual_seed(settings.seed)
    before = _resident_mib()
    chosen = _settings_of(name, settings)
    codec = codec_for(chosen, settings.charset, [settings.charset[0] * settings.max_length])
    recognizer = build(chosen, codec)
    held: Precision = precision_of("int8", device) if precision == "int8" else precision
    if precision == "int8":
        recognizer = quantize_recognizer(recognizer, device)
    processor = processor_for(chosen)
    engine = Engine(recognizer, codec, processor, device=device, precision=held)
    compile_blocks(engine)
    rng = np.random.default_rng(settings.seed)

    def sequence(frames: int) -> FrameStack:
        pixels = rng.integers(0, 256, (processor.height, processor.width, 3), np.uint8)
        return stack_frames([processor(pixels)] * frames)

    one = sequence(settings.frames)
    alone = _seconds(lambda: engine.read_prepared([one]), settings.seconds)
    rates = {1: 1 / alone}
    for batch in BATCHES:
        try:
            rates[batch] = batch / _seconds(partial(engine.read_prepared, [one] * batch), settings.seconds)
        except OutOfMemory:
            break  # larger ones do not fit either
        if rates[batch] < 0.9 * max(rates.values()):
            break
    best = max(rates, key=lambda batch: rates[batch])
    if engine.recognizer.reads_frames_together and settings.windows > 1:
        windowed = DecodeSettings(windows=settings.windows, window_frames=settings.frames)
        engine = engine.with_settings(windowed)
    whole = sequence(settings.frames * settings.windows)
    tracklet = _seconds(lambda: engine.read_prepared([whole]), settings.seconds)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _peak_mib() - before
    return Cost(
        name=name,
        precision=precision,
        **asdict(counts),
        peak_mib=round(peak, 1),
        ms=alone * 1e3,
        per_second=rates[best],
        best_batch=best,
        tracklet_ms=tracklet * 1e3,
    )


def _settings_of(name: str, settings: CostSettings) -> Any:
    return recognizer_settings(name, {"source": settings.sources[name]} if name in settings.sources else None)


def _device(settings: CostSettings) -> torch.device:
    return torch.device(settings.device) if settings.device else default_device()


def _in_a_process(name: str, precision: CostPrecision, settings: CostSettings, counts: Counts) -> Cost:
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        return pool.apply(measure, (name, precision, settings, counts))
    except (RuntimeError, MemoryError) as error:
        raise RuntimeError(f"{name} in {precision} could not be measured: {error}") from error
    finally:
        pool.close()  # a process that is ended by force leaves what its compiler shares behind
        pool.join()


def _seconds(read: Callable[[], object], most: float) -> float:
    """Median seconds of a call, over as many as fit in ``most``, at least three; one more before fills caches."""
    read()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < most and len(times) < 50):
        started = perf_counter()
        read()  # readings are numbers and text, so a GPU has finished when they are there
        times.append(perf_counter() - started)
    return median(times)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
