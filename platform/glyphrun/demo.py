"""The main job end to end: data, sweep, select, report, promote and serve. Each stage that is done is not done again."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from glyphrun.cluster import gpus, interruptible, ray_for_command, wait_for_interrupt
from glyphrun.data.sample import CARD_FILE, iterate_samples, read_card
from glyphrun.data.simulate import SimulatorSettings
from glyphrun.data.stream import simulate_dataset
from glyphrun.progress import Stages, show_stages
from glyphrun.registry import Registry
from glyphrun.report.run import report_run
from glyphrun.sweeps.load import load_experiment
from glyphrun.sweeps.run import claim_run, sweep_to_results
from glyphrun.sweeps.trials import write_json
from glyphrun.versions import RegistryError


@dataclass(frozen=True)
class Size:
    """How much of everything the demo uses."""

    experiment: str
    counts: dict[str, int]


FULL = Size("demo.yaml", {"train": 8000, "val": 600, "test": 800, "unseen": 800})
SMOKE = Size("demo-smoke.yaml", {"train": 200, "val": 40, "test": 40, "unseen": 40})


@dataclass(frozen=True)
class Version:
    """What was promoted, and where its bundle lies."""

    name: str
    version: int
    bundle: Path


def run_demo(size: Size, run_dir: Path, registry: Registry, console: Console, *, port: int, keep_serving: bool) -> None:
    """All five stages in run_dir; a run that was broken off goes on where it was.

    Raises ExperimentError if run_dir holds another experiment. KeyboardInterrupt and SIGTERM end every process it started.
    """
    run_dir = run_dir.absolute()
    experiment = load_experiment(experiments_folder() / size.experiment)
    with claim_run(run_dir, experiment), interruptible(), show_stages(console) as stages, ray_for_command():
        dataset = run_dir / "data"
        _make_data(dataset, size, experiment.seed, stages)
        results = sweep_to_results(experiment, dataset, run_dir, stages)
        report = run_dir / "report.html"
        done = report.exists()
        with stages.stage("report", total=1, skip=done):
            if not done:
                report_run(run_dir)
        model = _promote(run_dir, registry, results, stages)
        _serve(model, registry, dataset, report, results, stages, console, port=port, keep_serving=keep_serving)


def experiments_folder() -> Path:
    """Where the experiments of this repository are."""
    return Path(str(files("glyphrun"))).parents[1] / "experiments"


def _make_data(dataset: Path, size: Size, seed: int, stages: Stages) -> None:
    total = sum(size.counts.values())
    done = (dataset / CARD_FILE).exists() and read_card(dataset).counts == size.counts
    with stages.stage("data", total, skip=done) as stage:
        if not done:
            simulate_dataset(
                dataset,
                SimulatorSettings(),
                size.counts,
                seed,
                overwrite=True,
                progress=lambda rows, _: stage.advance_to(rows, f"{rows:,} of {total:,} tracklets"),
            )


def _promote(run_dir: Path, registry: Registry, results: dict[str, Any], stages: Stages) -> Version:
    """Promote the bundle once: a run that is started again finds its version."""
    marker = run_dir / "promoted.json"
    if marker.exists():
        promoted = json.loads(marker.read_text(encoding="utf-8"))
        try:
            bundle = registry.resolve(f"{promoted['name']}@{promoted['version']}")
        except RegistryError:
            pass  # another registry, or one that was removed
        else:
            with stages.stage("promote", 1, skip=True):
                return Version(promoted["name"], promoted["version"], bundle)
    with stages.stage("promote", 1):
        # Past the gate: a demo in a new folder shows its own winner, even beside a better one of the same name.
        made = registry.promote(
            run_dir / "bundle", results["run"]["name"], at=datetime.now(UTC), run=str(run_dir), reason="demo"
        )
        write_json(marker, {"name": made.name, "version": made.version})
        return Version(made.name, made.version, registry.resolve(f"{made.name}@{made.version}"))


def _serve(
    model: Version,
    registry: Registry,
    dataset: Path,
    report: Path,
    results: dict[str, Any],
    stages: Stages,
    console: Console,
    *,
    port: int,
    keep_serving: bool,
) -> None:
    from glyphrun_serve.app import ServeSettings, run

    sample = next(sample for sample in iterate_samples(dataset, "test") if sample.text)
    with ExitStack() as serving:
        with stages.stage("serve", 1) as stage:
            stage.advance_to(0, "the replica loads the bundle and warms up")
            server = serving.enter_context(run(ServeSettings(bundle=model.bundle, gpus=gpus()), port=port))
            upload = [("frames", (f"{number}.jpg", data, "image/jpeg")) for number, data in enumerate(sample.frames)]
            answer = httpx.post(f"{server.url}/v1/recognize", files=upload, timeout=60, trust_env=False)
            answer.raise_for_status()
        reading = answer.json()
        stages.progress.stop()  # the bars are done; what follows is for reading
        scores = results["splits"]
        chosen = next(trial for trial in results["trials"] if trial["id"] == results["winner"])
        console.print(
            f"\n[bold]Winner[/]  {chosen['id']} ({chosen['family']}), version {model.version} of {model.name}"
        )
        console.print(
            f"Latency {chosen['latency_ms']['p50']:.1f} ms a tracklet, budget {results['budget']['latency_ms']:g} ms"
        )
        for split, said in scores.items():
            low, high = said["exact_ci"]
            console.print(
                f"Exact match on {split:<7} {said['exact']:.3f}  (95 % interval {low:.3f} to {high:.3f}, n = {said['n']})"
            )
        console.print(
            f"\nPOST /v1/recognize with test tracklet {sample.sample_id} ({len(sample.frames)} frames, truth {sample.text!r})"
            f" → {reading['text']!r}, confidence {reading['confidence']:.3f}"
        )
        console.print(f"Page    {server.url}/", soft_wrap=True)
        console.print(f"Report  {report}", soft_wrap=True)
        console.print("\nTry next:")
        program, where = _program(), f" --registry {shlex.quote(registry.root)}"
        for command in (
            f"{program} data show {_short(dataset)} --out tracklets.png",
            f"{program} evaluate {model.name} {_short(dataset)} --split unseen --json{where}",
            f"{program} serve {model.name}{where}",
        ):
            console.print(f"  {command}", soft_wrap=True, highlight=False)
        if keep_serving:
            console.print("\nServing until Ctrl-C.")
            wait_for_interrupt()
            console.print("Stopped.")


def _program() -> str:
    """How to call glyphrun from here: by name where that finds this one, else by its path."""
    this = Path(sys.argv[0]).absolute()
    return "glyphrun" if shutil.which("glyphrun") == str(this) else str(_short(this))


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
