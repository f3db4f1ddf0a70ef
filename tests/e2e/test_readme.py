"""The README's commands do what it says."""

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from commands import ENVIRONMENT, GLYPHRUN, said, shared_ray
from glyphrun.data.sample import iterate_samples
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
GROUPS = ("data", "adapter", "lm", "lexicon")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)


def block_with(words: str) -> list[str]:
    return next(block for block in BLOCKS if words in block).strip().splitlines()


@dataclass(frozen=True)
class Newcomer:
    """Types what the README says into a folder of his own. ray: the address of what his verbs share."""

    folder: Path
    ray: str

    def types(self, line: str) -> str:
        """What a line prints; ``glyphrun`` in this process, for most of a verb's time is spent on starting one."""
        program, *arguments = shlex.split(line)
        with contextlib.chdir(self.folder):
            if program == "glyphrun":
                return said(*arguments, ray=self.ray)
            done = subprocess.run([program, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    def types_block(self, words: str) -> dict[str, str]:
        """What each verb of the block with these words prints."""
        return {line.split()[1]: self.types(line) for line in block_with(words)}


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Who has run the README's block of verbs, and what each verb printed."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(Path(__file__).parents[2] / "experiments")
    with shared_ray() as ray:
        newcomer = Newcomer(folder, ray)
        yield newcomer, newcomer.types_block("data simulate")


@pytest.mark.slow
def test_the_commands_of_the_verbs_run_one_after_another(newcomer):
    someone, printed = newcomer
    assert json.loads(printed["evaluate"])["n"] == 25
    assert "shirts" in printed["models"]
    assert (someone.folder / "runs/first/report.html").exists()


@pytest.mark.slow
def test_the_commands_about_recognizers_run(newcomer):
    someone, _ = newcomer
    someone.types_block("glyphrun cost")
    assert (someone.folder / "runs/features.parquet").exists()


@pytest.mark.slow
def test_the_commands_about_decoding_run(newcomer):
    someone, _ = newcomer
    someone.types_block("decode-sweep")
    assert (someone.folder / "runs/decode/decode.html").exists()
    assert json.loads((someone.folder / "runs/validation.json").read_text())["recommendations"]


def test_the_candidates_shown_are_an_experiment():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    experiment = Experiment.model_validate({"name": "shown", "trials": 6, **yaml.safe_load(block)})
    trials = plan_trials(experiment)
    assert {trial.start.lora.rank for trial in trials} == {0, 8, 32, 16}
    assert trials[0].decode.windows == 4 and trials[0].start.weights == "parseq-tiny"


@pytest.mark.slow
def test_your_own_images_are_imported_as_it_says(newcomer):
    someone, _ = newcomer
    folder = someone.folder
    samples = [sample for sample in iterate_samples(folder / "runs/shirts", "test") if sample.text][:5]
    with zipfile.ZipFile(folder / "crops.zip", "w") as archive:
        rows = ["file\ttext\tsplit"]
        for number, sample in enumerate(samples):
            archive.writestr(f"{number}.jpg", sample.frames[0])
            rows.append(f"{number}.jpg\t{sample.text}\ttrain")
        archive.writestr("labels.tsv", "\n".join([*rows, "missing.jpg\t7\ttrain", ""]))
    (line,) = block_with("data import")
    assert "train 5; 1 rejected" in someone.types(line)
    assert [sample.text for sample in iterate_samples(folder / "runs/crops")] == [sample.text for sample in samples]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's request is made with curl, which is not here")
def test_the_request_with_curl_is_answered(newcomer):
    someone, _ = newcomer
    folder = someone.folder
    sample = next(iterate_samples(folder / "runs/shirts", "test"))
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(sample.frames[number])
    server = subprocess.Popen(
        [GLYPHRUN, "serve", "shirts", "--port", "0"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split("/  ")[0]
        (line,) = block_with("curl")
        answer = json.loads(someone.types(line.replace("http://127.0.0.1:8000", url)))
        assert len(answer["votes"]) == 2
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0


def test_every_verb_is_listed_and_has_an_example():
    listed = set(re.findall(rf"^\| `glyphrun ((?:{'|'.join(GROUPS)}) [\w-]+|[\w-]+)", README, re.M))
    verbs = set(re.findall(r"│ (\w[\w-]*)  ", said("--help"))) - set(GROUPS)
    for group in GROUPS:
        verbs |= {f"{group} {verb}" for verb in re.findall(r"│ (\w[\w-]*)  ", said(group, "--help"))}
    assert listed == verbs
    for verb in listed:
        assert "Example:" in said(*verb.split(), "--help"), verb


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", next(block for block in BLOCKS if "make demo" in block), re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_every_file_that_the_readme_links_exists():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert "docs/report.png" in linked
    for path in linked:
        assert (Path(__file__).parents[2] / path).exists(), path
