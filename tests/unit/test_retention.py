"""Losers lose their weights, and nothing else."""

import torch
from torch import nn

from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.plan import plan_trials
from glyphrun.sweeps.retention import drop_weights, has_weights, kept_cost
from glyphrun.sweeps.trials import Outcome, begin, checkpoint_folder, read_record, trial_folder, write_outcome
from glyphrun.training.checkpoint import save_checkpoint


def test_losers_lose_their_weights_but_no_report_and_what_may_go_on_keeps_everything(tmp_path):
    experiment = Experiment.model_validate(
        {"name": "kept", "trials": 3, "candidates": [{"family": "digits", "recognizer": "query-digits-nano"}]}
    )
    trials = plan_trials(experiment)
    for trial in trials:
        begin(tmp_path, trial)
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        reports = [{"step": 7, "scores": {"exact": 0.5}}]
        save_checkpoint(checkpoint_folder(trial_folder(tmp_path, trial)), model, optimizer, {"reports": reports})
    winner, loser, _ = trials
    for trial in (winner, loser):
        write_outcome(trial_folder(tmp_path, trial), Outcome("finished"))
    (trial_folder(tmp_path, loser) / "snapshots" / "step-000007").mkdir(parents=True)
    records = [read_record(tmp_path, trial) for trial in trials]
    cost = {"latency_ms": {"p50": 3.0}}
    assert drop_weights(records, {loser.id: cost}, {winner.id}) == [loser.id]
    assert drop_weights(records, {loser.id: cost}, {winner.id}) == []
    assert [has_weights(record) for record in records] == [True, False, True]
    assert read_record(tmp_path, loser).reports == [{"step": 7, "scores": {"exact": 0.5}}]
    assert kept_cost(records[1]) == cost and kept_cost(records[0]) is None
    assert not (trial_folder(tmp_path, loser) / "snapshots").exists()
    assert not list(checkpoint_folder(trial_folder(tmp_path, loser)).glob("*.safetensors"))
