"""Trials that several workers share: Ray Train starts them, gradients are reduced between them, Tune schedules the trial."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from threading import Thread
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune

from glyphrun.images import ImageProcessor
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import processor_for
from glyphrun.sweeps.errors import ExperimentError, last_words
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.low_memory import SAID, WHY
from glyphrun.sweeps.mailbox import Mailbox
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.training import Measure, earlier_metrics, load_splits, train_trial
from glyphrun.sweeps.trials import read_outcome, trial_folder
from glyphrun.training.parallel import Workers

EVALUATION_S = (
    6 * 3600
)  # workers wait for the first one's evaluation in an exchange, which must not be taken for a hang
STARTS = 10  # attempts to find room, a minute each
WIND_DOWN_S = 60


def check_batches(experiment: Experiment, trials: list[Trial]) -> None:
    """Raises ExperimentError naming a trial whose batch is too small to be shared by its workers."""
    workers = experiment.workers_per_trial
    for trial in trials:
        if trial.train.batch_size < workers:
            raise ExperimentError(
                f"trial {trial.id} has a batch_size of {trial.train.batch_size}, which {workers} workers cannot share: "
                "raise it or lower workers_per_trial"
            )


class WorkersFailed(RuntimeError):
    """A worker ended before its training; the message says which and why."""


class DistributedTrial(tune.Trainable):
    """A trial whose batches are shared by workers in processes of their own, on one machine or several.

    It is a class because of how it is stopped: workers hold a placement group of theirs, which outlives a trial that is
    killed, and Tune gives no function the time to let go of it. A report is handed over as ``tune.report`` does it: the
    workers wait until the scheduler has decided, so a stopped trial has no step beyond its last report.
    """

    def setup(  # type: ignore[override] # what with_parameters holds comes as further arguments
        self,
        config: dict[str, Any],
        *,
        run_dir: Path,
        dataset: Path,
        charset: str,
        splits: dict[ImageProcessor, ray.ObjectRef],
        measure: Measure,
        workers: int,
        gpus: int,
    ) -> None:
        trial = Trial.model_validate(config["trial"])
        needed = trial.resources.needed(gpus)
        folder = trial_folder(run_dir, trial)
        self.outcome, self.earlier = read_outcome(folder), deque(earlier_metrics(folder))
        self.steps, self.workers = trial.train.steps, workers
        self.training: Thread | None = None
        if self.outcome is not None:
            return
        self.failure: WorkersFailed | None = None
        self.mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={
                "trial": config["trial"],
                "folder": folder,
                "charset": charset,
                "split": splits.get(processor_for(parse_settings(trial.settings))),
                "dataset": dataset,
                "measure": asdict(measure),  # plain, for Train's controller unpickles it and needs no models
                "mailbox": self.mailbox,
                "threads": int(needed["CPU"]),
            },
            torch_config=ray.train.torch.TorchConfig(timeout_s=EVALUATION_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=needed["GPU"] > 0, resources_per_worker=needed
            ),
            # mypy sees the configurations of an older ray.train, which these names no longer mean.
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=trial.id,
                storage_path=str(run_dir / "tune" / "workers"),
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=STARTS
                ),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        self.training = Thread(target=self._train, args=(trainer,), daemon=True)
        self.training.start()

    def _train(self, trainer: ray.train.torch.TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self.failure = WorkersFailed(_reason(error, self.workers))
        finally:
            ray.get(self.mailbox.close.remote())

    def step(self) -> dict[str, Any]:
        """The next report."""
        if self.training is None:
            return self._earlier_step()
        told: dict[str, Any] | None = ray.get(self.mailbox.receive.remote())
        if told is None:
            raise self.failure or WorkersFailed("the workers ended without a last report")
        return {**told, "done": told["step"] >= self.steps}

    def _earlier_step(self) -> dict[str, Any]:
        assert self.outcome is not None
        if not self.earlier:
            raise RuntimeError(self.outcome.reason)
        return {**self.earlier.popleft(), "done": not self.earlier and self.outcome.status != "failed"}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial that is paused goes on from its own folder."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing, likewise."""

    def cleanup(self) -> None:
        """Workers end together at their next report, and Train takes back what they held."""
        if self.training is not None:
            ray.get(self.mailbox.stop.remote())
            self.training.join(WIND_DOWN_S)


def _work(config: dict[str, Any]) -> None:
    """What each worker does, in torch.distributed's group that Train has made."""
    torch.set_num_threads(max(config["threads"], 1))
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    trial = Trial.model_validate(config["trial"])
    processor = processor_for(parse_settings(trial.settings))
    split = config["split"]  # none if a searcher proposed a size of images that no trial had when the sweep began
    train, val = load_splits(config["dataset"], processor) if split is None else ray.get(split)
    told = train_trial(
        trial,
        config["folder"],
        config["charset"],
        train,
        val,
        workers=workers,
        device=device,
        measure=Measure(**config["measure"]),
    )
    for report in told:
        go_on = ray.get(config["mailbox"].send.remote(report)) if workers.first else True
        if not workers.broadcast(go_on, device):
            return


def _reason(error: Exception, workers: int) -> str:
    """The failure of the worker that failed first: the others lose the connection to it."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return shorten(last_words(error), 400, placeholder="…")
    said = {
        rank: WHY + f" ({SAID})" if SAID in str(failure) else last_words(failure) for rank, failure in failures.items()
    }
    rank = min(said, key=lambda rank: ("gloo" in said[rank] or "nccl" in said[rank].lower(), rank))
    return shorten(f"worker {rank + 1} of {workers} failed: {said[rank]}", 400, placeholder="…")
