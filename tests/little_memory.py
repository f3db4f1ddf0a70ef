"""Memory that is really taken away, by the limit of a process; only for a process that ends with its test."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path


def allow(megabytes: int) -> None:
    """From here on this process gets so much more memory and no more.

    What suffices differs by a tenth with the processor's kernels and with what a test before has brought in: a limit
    stands well away from where one more item would fit.
    """
    # glibc would keep what is freed for later, in pieces, and reserve 64 MiB for each thread; with a fixed threshold of
    # 128 KiB and one arena the limit counts what is used.
    glibc = ctypes.CDLL(None)
    glibc.mallopt(-3, 131_072)
    glibc.mallopt(-8, 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
