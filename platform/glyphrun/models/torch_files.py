"""Tensors out of torch's zip files, without running a line of what is pickled in them.

``torch.save`` writes a zip: ``data.pkl`` says which objects there are, ``data/0``, ``data/1``, … hold the numbers. A
pickle is a program for a stack machine, and its danger is that it may call anything. The machine here builds plain
containers and tensors; a class or function stays a name, and what a call of one would have made stays an empty shell.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit; the message names the file, url or tensor and what to do."""


@dataclass(frozen=True)
class Symbol:
    """A class or function as a pickle names it, such as ``collections.OrderedDict``. Nothing is imported."""

    name: str


class Shell(dict[Any, Any]):
    """What stands for an object of an unknown class; entries set in it as in a mapping are kept, all else is not."""

    def __init__(self, made_by: str) -> None:
        super().__init__()
        self.made_by = made_by

    def __hash__(self) -> int:  # type: ignore[override]  # an object of an unknown class may be a key
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class Storage:
    """The bytes under one or several tensors, and the type of its numbers."""

    data: bytearray
    dtype: torch.dtype


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_UNTYPED = {  # types without a storage class of their own
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("uint16", "uint32", "uint64", "complex32"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
)


def read_torch_file(path: Path) -> Any:
    """What a zip-format ``.pt``, ``.pth`` or ``.ckpt`` holds: plain containers, tensors, and shells for all the rest.

    Raises WeightsError for a file of another format, a damaged one, and tensors that reach beyond their storage.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): give the path of a weights file") from None
    if not head.startswith(b"PK\x03\x04"):
        raise WeightsError(f"{path} {other_content(head) or 'is no torch file: give a file that torch.save wrote'}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except _DAMAGE as error:
        raise WeightsError(f"{path} is cut off or damaged ({error}): copy or download it again") from None


def other_content(head: bytes) -> str | None:
    """What a file that begins like this is in place of weights, and what to do; None if that is not known."""
    if not head:
        return "is empty: copy or download it again"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "is an HTML page, not weights: download it again, from an address that gives the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights: fetch the file with «git lfs pull»"
    if head.startswith(b"\x80") and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:24]:
        return (
            "is in torch's format of before version 1.6: save it anew where you trust it, with "
            "torch.save(torch.load(old, weights_only=True), new)"
        )
    if head.startswith(b"\x80"):
        return "is a pickle and no torch file: save a state_dict with torch.save or safetensors"
    return None


def _read_archive(archive: zipfile.ZipFile) -> Any:
    names = set(archive.namelist())
    described = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(described) != 1:
        raise ValueError("a zip without a data.pkl")
    root = described[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine, which is not read here")
    loaded: dict[str, bytearray] = {}

    def storage(identity: Any) -> Storage | Shell:
        match identity:
            case ("storage", Symbol(kind), str(key), _, int(count)):
                dtype = _STORAGES.get(kind.rpartition(".")[2])
            case _:
                raise ValueError("a storage is named in an unknown way")
        if dtype is None:
            return Shell(kind)
        entry = f"{root}data/{key}"
        if entry not in names:
            raise ValueError(f"storage {key} is missing")
        if not 0 <= count * dtype.itemsize <= archive.getinfo(entry).file_size:
            raise ValueError(f"storage {key} is shorter than its {count} numbers")
        if key not in loaded:
            loaded[key] = bytearray(archive.read(entry))
        return Storage(loaded[key], dtype)

    return interpret(archive.read(described[0]), storage)


def interpret(pickled: bytes, storage: Callable[[Any], Any]) -> Any:
    """The object that a pickle describes; storage turns a persistent id into what tensors are made of.

    Opcodes as in the standard library's pickletools. Raises ValueError and other built-in errors for a broken pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("its pickle takes more than it made")
        items = stack[-count:]
        del stack[-count:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP" if marks and marks[-1] == len(stack):
                marks.pop()
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "LIST":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "FROZENSET":
                stack.append(frozenset(since_mark()))
            case "DICT":
                stack.append(_pairs(since_mark()))
            case "APPEND" | "APPENDS":
                items = pop(1) if opcode.name == "APPEND" else since_mark()
                if not isinstance(stack[-1], Shell):
                    stack[-1].extend(items)
            case "ADDITEMS":
                items = since_mark()
                if not isinstance(stack[-1], Shell):
                    stack[-1].update(items)
            case "SETITEM" | "SETITEMS":
                pairs = _pairs(pop(2) if opcode.name == "SETITEM" else since_mark())
                stack[-1].update(pairs)
            case "GLOBAL":
                stack.append(Symbol(".".join(argument.split(" ", 1))))
            case "STACK_GLOBAL":
                stack.append(Symbol(".".join(pop(2))))
            case "REDUCE":
                stack.append(_made(*pop(2)))
            case "NEWOBJ":
                stack.append(_shell(pop(2)[0]))
            case "NEWOBJ_EX":
                stack.append(_shell(pop(3)[0]))
            case "OBJ":
                stack.append(_shell(since_mark()[0]))
            case "INST":
                since_mark()
                stack.append(Shell(argument))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Shell(opcode.name))
            case "BUILD":
                pop(1)
            case "PERSID":
                stack.append(storage(argument))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError("its pickle expects buffers from elsewhere")
            case _:  # every other opcode is a number, a string or bytes
                stack.append(argument)
    raise ValueError("its pickle has no end")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _shell(called: Any) -> Shell:
    return Shell(called.name if isinstance(called, Symbol) else type(called).__name__)


def _made(called: Any, arguments: Any) -> Any:
    """What a call makes: an ordered dict, a tensor, or a shell."""
    match called, arguments:
        case Symbol("collections.OrderedDict"), tuple():
            return dict(*arguments)
        case Symbol("torch._utils._rebuild_parameter"), (Tensor() as tensor, *_):
            return tensor
        case Symbol("torch._utils._rebuild_tensor_v2"), (Storage() as storage, offset, size, stride, *_):
            return _tensor(storage.data, storage.dtype, offset, size, stride)
        case (
            Symbol("torch._utils._rebuild_tensor_v3"),
            (Storage() as storage, offset, size, stride, _, _, Symbol(dtype), *_),
        ):
            return _tensor(storage.data, _UNTYPED[dtype], offset, size, stride)
        case _:
            return _shell(called)


def _tensor(data: bytearray, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of a storage; offset, size and stride count numbers, not bytes."""
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor has no proper shape")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if last >= len(data) // dtype.itemsize:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    count = len(data) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count).as_strided(size, stride, offset)
