"""The README's commands do what it says."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from test_demo import ENVIRONMENT, GLYPHRUN, glyphrun

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_the_commands_of_the_verbs_run_one_after_another(tmp_path):
    lines = next(block for block in BLOCKS if "data simulate" in block).strip().splitlines()
    (tmp_path / "experiments").symlink_to(Path(__file__).parents[2] / "experiments")
    printed = {}
    for line in lines:
        program, *arguments = line.split()
        assert program == "glyphrun"
        done = subprocess.run(
            [GLYPHRUN, *arguments], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (line, done.stderr)
        printed[arguments[0]] = done.stdout
    assert json.loads(printed["evaluate"])["n"] == 25
    assert "shirts" in printed["models"]
    assert (tmp_path / "runs/first/report.html").exists()


def test_every_verb_is_listed_and_has_an_example():
    listed = set(re.findall(r"^\| `glyphrun (data \w+|\w+)", README, re.M))
    helped = glyphrun("--help").stdout
    data = glyphrun("data", "--help").stdout
    verbs = set(re.findall(r"│ (\w+)  ", helped)) - {"data"} | {
        f"data {verb}" for verb in re.findall(r"│ (\w+)  ", data)
    }
    assert listed == verbs
    for verb in listed:
        assert "Example:" in glyphrun(*verb.split(), "--help").stdout, verb


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", next(block for block in BLOCKS if "make demo" in block), re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_every_file_that_the_readme_links_exists():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert "docs/report.png" in linked
    for path in linked:
        assert (Path(__file__).parents[2] / path).exists(), path
