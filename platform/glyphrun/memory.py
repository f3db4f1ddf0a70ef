"""Memory that does not suffice: how it is told from other errors, and which size was found to fit by trying."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import TypeVar

import torch

Result = TypeVar("Result")
Item = TypeVar("Item")

# torch has an exception for memory of a GPU alone; for the processor's it has sentences, one an allocator. The last two
# are oneDNN's, which does not say why: where it is not memory, no size fits, and the message has its words.
_SENTENCES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
    "could not create a primitive",
    "could not execute a primitive",
)


class OutOfMemory(RuntimeError):
    """Memory did not suffice; the message says which size fits, found by trying."""


def ran_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory, of a GPU or of the processor, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    known = isinstance(error, RuntimeError) and not isinstance(error, OutOfMemory)
    return known and any(sentence in str(error) for sentence in _SENTENCES)


def or_out_of_memory(action: Callable[[], Result], advice: Callable[[], str]) -> Result:
    """What the action returns. Raises OutOfMemory with what advice finds out once all that the action held is free."""
    try:
        return action()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        said = shorten(str(error) or "no memory", 120, placeholder="…")
    # Here the error is gone, and with its traceback every tensor of the action.
    _release()
    raise OutOfMemory(f"{advice()} ({said})")


def largest_that_fits(attempt: Callable[[int], object], sizes: Iterable[int]) -> int | None:
    """The first of some falling sizes with which an attempt has memory enough; None if there is none."""
    return next((size for size in sizes if _fits(attempt, size)), None)


def items_that_fit(read: Callable[[Sequence[Item]], object], items: Sequence[Item]) -> str:
    """What to do where reading so many items at once ran out of memory, found by reading fewer."""
    halves = [len(items) >> halved for halved in range(1, len(items).bit_length())]
    fits = largest_that_fits(lambda count: read(items[:count]), halves)
    if fits is None:
        return "not even one item fits in memory: give fewer frames an item, or choose a smaller recognizer"
    return f"{len(items)} items at once do not fit in memory, and {fits} do: give at most {fits} at a time"


def _fits(attempt: Callable[[int], object], size: int) -> bool:
    try:
        attempt(size)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    finally:
        _release()
    return True


def _release() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # What is free lies in pieces between what is not; glibc gives whole pages back when it is asked to.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
