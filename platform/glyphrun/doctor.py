"""What a machine lacks for this program: its Python, packages, GPU driver, memory, disk and shared memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from glyphrun.device import available_cores, default_device, default_precision

Verdict = Literal["ok", "note", "wrong"]
GIB = 1 << 30
MEMORY, DISK, FULL = 3 * GIB, 5 * GIB, 0.95
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
IMPORTANT = ("ray", "torch", "torchvision", "timm", "transformers", "peft", "numpy", "pyarrow")


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and where it is not ok, what follows and what to do."""

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


def machine_findings(folder: Path, object_store: int) -> Iterator[Finding]:
    """All findings about this machine. folder: where runs are kept; object_store: bytes that Ray will share between trials."""
    yield Finding("python", platform.python_version())
    yield packages_finding(_installed())
    yield _gpu()
    yield Finding("processors", f"{available_cores()}, {default_precision(torch.device('cpu'))}")
    yield memory_finding(*_memory())
    yield disk_finding(folder, *disk_space(folder))
    shared = Path("/dev/shm")
    if shared.exists():
        yield shared_finding(shutil.disk_usage(shared).total, object_store)


def packages_finding(installed: Mapping[str, str | None]) -> Finding:
    """installed: version by name, None where there is none."""
    try:
        needed = [Requirement(line) for line in requires("glyphrun") or []]
    except PackageNotFoundError:
        return Finding("packages", "unknown", "note", "glyphrun is not installed here, so nothing says what it needs")
    problems = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed.get(requirement.name)
        if found is None:
            problems.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}, not {requirement.specifier}")
    listed = ", ".join(f"{name} {installed[name]}" for name in IMPORTANT if installed.get(name))
    if problems:
        return Finding("packages", listed, "wrong", f"{'; '.join(problems)}: pip install -r requirements.lock")
    return Finding("packages", listed)


def driver_finding(
    driver: str, cuda: str, supports: int, cards: Mapping[str, tuple[int, int]], built: list[str]
) -> Finding:
    """A GPU that torch does not see although there is a driver, or was not built for.

    driver: its version; supports: the newest CUDA that it runs, as 13020 for 13.2; cuda: the one torch was built with;
    cards: compute capability by name; built: architectures of torch, as sm_75.
    """
    found = f"{', '.join(cards) or 'none that torch can use'}; driver {driver}, CUDA {supports // 1000}.{supports % 1000 // 10}"
    if supports // 1000 < int(cuda.split(".")[0]):
        return Finding(
            "gpu", found, "wrong", f"torch was built with CUDA {cuda}: install a newer driver, 580 for CUDA 13"
        )
    if not cards:
        return Finding(
            "gpu", found, "wrong", "there is a driver and torch sees no GPU: is the container started with it?"
        )
    for name, (major, minor) in cards.items():
        # Code for one generation also runs on later cards of the same major version.
        fitting = [one for one in built if one.startswith(f"sm_{major}") and int(one[3:]) <= 10 * major + minor]
        if not fitting:
            return Finding(
                "gpu", found, "wrong", f"this torch has no code for {name} (sm_{major}{minor}): {' '.join(built)}"
            )
    return Finding("gpu", found)


def memory_finding(free: int, limit: int) -> Finding:
    """free: bytes that this process could still take; limit: of the machine or the container."""
    found = f"{free / GIB:.1f} GiB free of {limit / GIB:.1f}"
    if free < MEMORY:
        return Finding(
            "memory", found, "note", "Ray kills trials when it runs out: close something or run fewer at once"
        )
    return Finding("memory", found)


def disk_finding(folder: Path, free: int, total: int) -> Finding:
    """Of the disk that holds a folder."""
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f} at {folder}"
    if 1 - free / total >= FULL:
        return Finding("disk", found, "wrong", "Ray writes no object to a disk that is 95 % full: make room")
    if free < DISK:
        return Finding("disk", found, "note", "checkpoints and spilled objects take a few GiB: make room")
    return Finding("disk", found)


def shared_finding(size: int, object_store: int) -> Finding:
    """size: bytes of /dev/shm."""
    found = f"{size / GIB:.1f} GiB"
    if size < object_store:
        return Finding(
            "/dev/shm",
            found,
            "note",
            f"Ray shares {object_store / GIB:.1f} GiB between trials, and what does not fit goes through the disk, many times "
            "slower: start the container with --shm-size=4g",
        )
    return Finding("/dev/shm", found)


def _installed() -> dict[str, str | None]:
    try:
        names = [Requirement(line).name for line in requires("glyphrun") or []]
    except PackageNotFoundError:
        names = list(IMPORTANT)
    return {name: _version(name) for name in {*names, *IMPORTANT}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> Finding:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = (
            subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0].strip()
        )
    except (OSError, subprocess.SubprocessError, IndexError):
        return Finding("gpu", f"none; torch {torch.__version__} computes on the processor")
    if torch.version.cuda is None:
        return Finding(
            "gpu", f"driver {driver}", "wrong", f"torch {torch.__version__} was built without CUDA: install another"
        )
    cards = {}
    if default_device().type == "cuda":
        for number in range(torch.cuda.device_count()):
            cards[torch.cuda.get_device_name(number)] = torch.cuda.get_device_capability(number)
    supports = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return driver_finding(driver, torch.version.cuda, supports, cards, torch.cuda.get_arch_list())


def _memory() -> tuple[int, int]:
    """Bytes free and in all, of the machine or of the container that is smaller."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (1024 * int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    for path in LIMITS:
        try:
            limit = int(path.read_text())
            used = int(path.with_name(path.name.replace("max", "current").replace("limit", "usage")).read_text())
        except (OSError, ValueError):  # there is no such file, or it says max
            continue
        if limit < total:
            return min(free, max(limit - used, 0)), limit
    return free, total


def disk_space(folder: Path) -> tuple[int, int]:
    """Bytes free to this user, and all bytes, of the disk that holds a folder or will hold it."""
    while not folder.exists():
        folder = folder.parent
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize
