"""What a trial's training started from: the base that its adapters belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from glyphrun.data.sample import read_card
from glyphrun.engine import Engine
from glyphrun.models.lora import LoraSettings
from glyphrun.models.zoo import parse_settings
from glyphrun.recipe import codec_for, processor_for
from glyphrun.run_folder import dataset_of
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.plan import Trial
from glyphrun.sweeps.trained import labels
from glyphrun.sweeps.trials import is_trial, read_trial
from glyphrun.training.start import start_recognizer


@dataclass(frozen=True)
class Start:
    """A trial and an engine with the weights that its training began with, without LoRA."""

    trial: Trial
    engine: Engine


def start_of(folder: Path, dataset: Path | None = None) -> Start:
    """The start of the trial of a folder, ``RUN/trials/ID``, on the processor in float32.

    dataset: where the run's data lie, if not where they were; its labels made the codec. Raises ExperimentError for a
    folder that is no trial's and for data that are not there, and what ``start_recognizer`` does.
    """
    if not is_trial(folder):
        raise ExperimentError(f"{folder} is no trial's folder: name RUN/trials/ID")
    trial = read_trial(folder)
    run = folder.resolve().parent.parent
    data = dataset or dataset_of(run)
    if data is None:
        raise ExperimentError(f"the data of {run} are not where they were: name their folder with --dataset")
    settings = parse_settings(trial.settings)
    codec = codec_for(settings, read_card(data).charset, labels(data))
    whole = trial.start.model_copy(update={"lora": LoraSettings()})
    recognizer, _ = start_recognizer(settings, codec, whole, trial.train.seed)
    processor = processor_for(settings)
    device = torch.device("cpu")
    return Start(trial, Engine(recognizer, codec, processor, trial.decode, device=device, precision="float32"))
