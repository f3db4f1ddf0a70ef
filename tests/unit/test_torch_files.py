from __future__ import annotations

import argparse
import os
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glyphrun.models.torch_files import Shell, WeightsError, read_torch_file


class Runs:
    """An object whose pickle runs a command when it is loaded the usual way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Unknown:
    def __init__(self) -> None:
        self.tensor, self.text = torch.ones(2), "kept by nobody"


def rewrite(path: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """The zip at path with some entries changed or left out; names without their root folder."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            content = changes.get(entry.partition("/")[2], old.read(entry))
            if content is not None:
                new.writestr(entry, content)
    return target


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.float8_e4m3fn),
    ],
    ids=str,
)
def test_numbers_of_every_type_come_back(tmp_path, dtype, protocol):
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    torch.save({"tensor": tensor}, tmp_path / "x.pt", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "x.pt")["tensor"]
    assert found.dtype == dtype
    assert found.to(torch.complex128).tolist() == tensor.to(torch.complex128).tolist()


def test_views_come_back_with_their_strides_and_offsets_on_one_storage(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "transposed": base.t(),
        "inner": base[1:3, 2:5],
        "every_other": base[::2, 1::2],
        "expanded": base[2, 3].expand(5, 7),
        "one": base[3, 5],
        "none": base[:0],
        "parameter": nn.Parameter(base[1]),
    }
    torch.save(views, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")
    for name, view in views.items():
        assert torch.equal(found[name], view), name
        assert found[name].stride() == view.stride(), name
    assert found["transposed"].untyped_storage().data_ptr() == found["inner"].untyped_storage().data_ptr()


def test_a_file_whose_pickle_would_run_a_command_runs_nothing(tmp_path):
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    torch.save({"weight": torch.ones(3), "extra": Runs(f"touch {trace}")}, path)
    with zipfile.ZipFile(path) as archive:
        opcodes = [(code.name, argument) for code, argument, _ in pickletools.genops(archive.read("x/data.pkl"))]
    assert ("GLOBAL", "posix system") in opcodes and ("BINUNICODE", f"touch {trace}") in opcodes
    found = read_torch_file(path)
    assert found["weight"].tolist() == [1, 1, 1]
    assert isinstance(found["extra"], Shell) and found["extra"].made_by == "posix.system"
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_other_libraries_and_unknown_classes_are_empty_shells_beside_the_tensors(tmp_path, protocol):
    checkpoint = {
        "epoch": 7,
        "rates": [0.5, -1, 10**30, None, True],
        "hyper_parameters": argparse.Namespace(charset="0123", unknown=Unknown()),
        "module": nn.Linear(2, 2),
        "array": np.arange(3),
        "sets": ({1, 2}, frozenset([3])),
        "groups": defaultdict(list, {"a": [1]}),
        Unknown(): date(2026, 1, 1),
        "ordered": OrderedDict(b=1, a=2),
        "state_dict": nn.Linear(3, 2).state_dict(),
        "counts": [torch.Size([1, 2]), torch.float16],
    }
    torch.save(checkpoint, tmp_path / "x.ckpt", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "x.ckpt")
    assert found["epoch"] == 7 and found["rates"] == checkpoint["rates"]
    assert list(found["ordered"].items()) == [("b", 1), ("a", 2)]
    assert found["groups"]["a"] == [1]
    assert found["hyper_parameters"].made_by == "argparse.Namespace"
    assert {type(found[key]) for key in ("hyper_parameters", "module", "array", "groups")} == {Shell}
    assert {name: value.shape for name, value in found["state_dict"].items()} == {"weight": (2, 3), "bias": (2,)}
    assert torch.equal(found["state_dict"]["weight"], checkpoint["state_dict"]["weight"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: copy or download it again"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is an HTML page, not weights: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "Git LFS pointer.*git lfs pull"),
        (b"\x80\x04K\x01.", "is a pickle and no torch file: save a state_dict"),
        (b"hello", "is no torch file: give a file that torch.save wrote"),
        (b"PK\x03\x04 and nothing else", "is cut off or damaged"),
    ],
)
def test_a_file_that_is_something_else_is_named_with_what_to_do(tmp_path, content, sentence):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"^{path} .*{sentence}") as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


def test_the_format_before_the_zip_is_named_with_how_to_save_anew(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before version 1\.6: save it anew .*weights_only=True"):
        read_torch_file(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, share):
    torch.save(nn.Linear(40, 40).state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"cut\.pt is cut off or damaged .*: copy or download it again"):
        read_torch_file(tmp_path / "cut.pt")


def test_a_changed_number_is_noticed(tmp_path):
    torch.save({"weight": torch.full((64,), 0.5)}, tmp_path / "x.pt")
    whole = bytearray((tmp_path / "x.pt").read_bytes())
    place = whole.index(torch.full((64,), 0.5).numpy().tobytes())
    whole[place] ^= 1
    (tmp_path / "x.pt").write_bytes(whole)
    with pytest.raises(WeightsError, match="damaged"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data/0": b"\0" * 8}, "storage 0 is shorter than its 6 numbers"),
        ({"data/0": None}, "storage 0 is missing"),
        ({"data.pkl": None}, "a zip without a data.pkl"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data.pkl": b"\x80\x02}q\x00"}, "pickle"),
        ({"data.pkl": b"\x80\x02R."}, "takes more than it made"),
        ({"data.pkl": b"\x80\x02h\x05."}, "5"),  # an entry that was never memoised
        ({"data.pkl": b"\x80\x02}]K\x01s."}, "unhashable"),
    ],
)
def test_a_file_with_missing_or_contradicting_parts_is_refused(tmp_path, changes, sentence):
    torch.save({"weight": torch.arange(6.0)}, tmp_path / "x.pt")
    path = rewrite(tmp_path / "x.pt", tmp_path / "changed.pt", changes)
    with pytest.raises(WeightsError, match=rf"changed\.pt is cut off or damaged \(.*{sentence}"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"K\x01K\x03\x86", b"K\x02K\x03\x86"),  # shape (1, 3) made (2, 3)
        (b"K\x00K\x01K\x03\x86", b"K\x01K\x01K\x03\x86"),  # offset 0 made 1
        (b"K\x00K\x01K\x03\x86", b"J\xff\xff\xff\xffK\x01K\x03\x86"),  # offset -1
    ],
)
def test_a_tensor_never_reaches_beyond_its_storage(tmp_path, before, after):
    torch.save({"weight": torch.tensor([[1.0, 2.0, 3.0]])}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        pickled = archive.read("x/data.pkl")
    assert pickled.count(before) == 1
    path = rewrite(tmp_path / "x.pt", tmp_path / "changed.pt", {"data.pkl": pickled.replace(before, after)})
    with pytest.raises(WeightsError, match="beyond its storage|no proper shape"):
        read_torch_file(path)


def test_sparse_tensors_are_shells_and_leave_the_rest_readable(tmp_path):
    torch.save({"sparse": torch.eye(3).to_sparse(), "plain": torch.ones(2)}, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")
    assert found["sparse"].made_by == "torch._utils._rebuild_sparse_tensor"
    assert isinstance(found["plain"], Tensor)
