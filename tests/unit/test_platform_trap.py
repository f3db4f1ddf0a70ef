"""The folder platform/ is an import root; as a package it would hide the standard library's module of that name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["platform", "serve"])
def test_import_roots_are_no_packages(folder):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_standard_platform_module_is_found_from_the_checkout():
    program = "import platform, uuid; print(platform.system(), platform.__file__)"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert answer[0] == sys.platform.capitalize().rstrip("0123456789") or answer[0] in ("Darwin", "Windows")
    assert not Path(answer[1]).is_relative_to(ROOT / "platform")


def test_no_module_imports_a_private_name_of_another():
    private = []
    for path in sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "serve").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glyphrun"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                private += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.startswith("_")]
    assert private == []
