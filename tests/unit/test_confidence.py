"""Temperature scaling of confidences: what it changes, what it leaves, and where the temperature comes from."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
import torch

from glyphrun.decoding.confidence import CERTAIN, calibrate, log_odds, tempered
from glyphrun.decoding.settings import Calibration, DecodeSettings
from glyphrun.decoding.vote import Hypothesis
from glyphrun.engine import Engine
from glyphrun.evaluation.calibration import Answers, fit_temperature
from glyphrun.images import ImageProcessor, encode_image
from glyphrun.models.encoder import EncoderSettings
from glyphrun.models.parseq import PARSeq, PARSeqSettings
from glyphrun.prediction import Prediction
from glyphrun.sweeps.confidence import settle_confidence
from glyphrun.sweeps.experiment import Experiment
from glyphrun.text import DIGITS, Codec


def answers(temperature: float, n: int = 600, seed: int = 0) -> Answers:
    """Answers whose confidences are calibrated once their log-odds are divided by the temperature; two characters each."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(2.0, 1.5, n)  # log-odds of being right
    log_probs = -np.logaddexp(0, -honest * temperature)
    correct = rng.random(n) < 1 / (1 + np.exp(-honest))
    return Answers(log_probs, correct, np.repeat(log_probs, 2), np.repeat(correct, 2))


def test_a_temperature_of_2_takes_the_square_root_of_the_odds():
    assert exp(tempered(log(0.9), 2.0)) == pytest.approx(3 / 4)  # odds 9 to 1, then 3 to 1
    assert exp(tempered(log(0.1), 2.0)) == pytest.approx(1 / 4)
    assert exp(tempered(log(0.75), 0.5)) == pytest.approx(9 / 10)
    assert exp(tempered(log(0.5), 7.0)) == pytest.approx(1 / 2)


def test_a_temperature_of_1_changes_no_bit():
    log_probs = [-0.0, -1e-12, -0.3, -50.0, -1000.0]
    assert tempered(log_probs, 1.0).tolist() == log_probs


@pytest.mark.parametrize("temperature", [0.2, 0.9, 3.0, 40.0])
def test_no_temperature_changes_an_order(temperature):
    log_probs = np.log(np.concatenate([np.geomspace(1e-9, 0.4, 200), 1 - np.geomspace(0.5, 2e-6, 200)]))
    changed = tempered(log_probs, temperature)
    assert (np.diff(log_probs) > 0).all() and (np.diff(changed) > 0).all()
    assert (changed < 0).all()


def test_certainty_has_finite_odds_and_so_can_be_doubted():
    assert log_odds(0.0) == pytest.approx(log(CERTAIN / (1 - CERTAIN)))
    assert exp(tempered(0.0, 4.0)) == pytest.approx(1 / (1 + (1e-6) ** 0.25), rel=1e-6)
    assert exp(tempered(-1000.0, 2.0)) == pytest.approx(exp(-500.0))
    assert exp(tempered(-np.inf, 2.0)) == 0.0


def test_strings_and_characters_have_a_temperature_each_and_the_order_of_readings_stays():
    n_best = [
        Hypothesis("17", log(0.9), (log(0.95), log(0.96), log(0.98)), ("1", "7")),
        Hypothesis("11", log(0.1), (log(0.95), log(0.1), log(0.98)), ("1", "1")),
    ]
    found = calibrate(n_best, Calibration(temperature=2.0, character_temperature=0.5))
    assert [one.text for one in found] == ["17", "11"] and found[0].pieces == ("1", "7")
    assert [exp(one.log_prob) for one in found] == pytest.approx([3 / 4, 1 / 4])
    odds = [(p / (1 - p)) ** 2 for p in (0.95, 0.1, 0.98)]
    assert [exp(one) for one in found[1].token_log_probs] == pytest.approx([one / (1 + one) for one in odds])
    assert calibrate(n_best, Calibration()) == n_best


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_confidences_wrong_is_found_again(temperature):
    drawn = answers(temperature, n=6000)
    fitted = fit_temperature(drawn.log_probs, drawn.correct)
    assert fitted.reason is None
    assert fitted.value == pytest.approx(temperature, rel=0.08)


def test_no_other_temperature_makes_the_answers_likelier():
    drawn = answers(1.7, n=300, seed=4)

    def likelihood(temperature: float) -> float:
        right = tempered(drawn.log_probs, temperature)
        return float(np.where(drawn.correct, right, np.log(-np.expm1(right))).sum())

    best = fit_temperature(drawn.log_probs, drawn.correct).value
    assert best == pytest.approx(1.7, rel=0.2)
    assert likelihood(best) > max(likelihood(best * 0.99), likelihood(best * 1.01), likelihood(1.0))


def test_unanimous_votes_that_are_sometimes_wrong_are_doubted():
    certain = fit_temperature(np.zeros(200), np.arange(200) % 10 > 0)
    assert exp(tempered(0.0, certain.value)) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [(591, 9, "591 right and 9 wrong"), (0, 40, "0 right and 40 wrong"), (0, 0, "0 right and 0 wrong")],
)
def test_too_few_answers_of_a_kind_give_no_temperature(right, wrong, said):
    fitted = fit_temperature(np.full(right + wrong, -0.1), np.arange(right + wrong) < right)
    assert fitted.value == 1.0 and fitted.reason is not None
    assert fitted.reason.endswith(f"and there are {said}") and "at least 10 right and 10 wrong" in fitted.reason


def test_confidence_that_says_nothing_or_everything_gives_no_temperature():
    log_probs = np.log(np.linspace(0.05, 0.95, 200))
    for correct, said in (
        (log_probs < log(0.5), "does not tell right from wrong"),
        (log_probs > log(0.5), "any sharpening is likelier still"),
    ):
        fitted = fit_temperature(log_probs, correct)
        assert fitted.value == 1.0 and said in str(fitted.reason)


def test_an_answer_without_any_probability_is_no_obstacle():
    drawn = answers(1.5)
    with_one = np.append(drawn.log_probs, -np.inf)
    fitted = fit_temperature(with_one, np.append(drawn.correct, False))
    assert fitted.value == pytest.approx(fit_temperature(drawn.log_probs, drawn.correct).value, rel=1e-6)


def test_as_many_confidences_as_answers_are_needed():
    with pytest.raises(ValueError, match="3 confidences do not belong to 2 answers"):
        fit_temperature([-1, -1, -1], [True, False])


@pytest.mark.parametrize("vote", [False, True])
def test_an_engine_calibrates_after_the_vote_and_abstains_by_what_it_then_says(vote):
    torch.manual_seed(1)
    encoder = EncoderSettings(image=(16, 24), patch=(8, 8), width=16, depth=1, heads=2)
    settings = PARSeqSettings(encoder=encoder, decoder_heads=2, fusion="none" if vote else "mean")
    recognizer, codec, processor = PARSeq(settings, 10, 2), Codec(DIGITS, 2), ImageProcessor(height=16, width=24)
    rng = np.random.default_rng(0)
    items = [[encode_image(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)) for _ in range(4)] for _ in range(12)]

    def read(**changes: object) -> list[Prediction]:
        decode = DecodeSettings.model_validate({"vote_floor": 0.0, **changes})
        return Engine(recognizer, codec, processor, decode, precision="float32").read(items)

    raw = read()
    calibration = {"temperature": 0.4, "character_temperature": 2.0}
    expected = [exp(tempered(one.n_best[0].log_prob, 0.4)) for one in raw]
    _, low, high = max((high - low, low, high) for low, high in pairwise(sorted(expected)))
    read_again = read(calibration=calibration, abstain_below=(low + high) / 2)
    assert [one.text for one in read_again] == [one.text for one in raw]
    assert [one.confidence for one in read_again] == pytest.approx(expected, rel=1e-5)
    assert [one.votes for one in read_again] == [one.votes for one in raw], "each frame keeps its own probability"
    assert [one.abstained for one in read_again] == [one <= low for one in expected]
    for one, before in zip(read_again, raw, strict=True):
        characters = tempered(before.n_best[0].token_log_probs, 2.0)
        assert one.n_best[0].token_log_probs == pytest.approx(characters.tolist(), rel=1e-5)


def test_the_settings_of_a_winner_come_from_val_alone():
    val, test = answers(2.0), answers(0.5, seed=1)
    decode, said = settle_confidence(DecodeSettings(n_best=5), {"val": val, "test": test}, 0.95)
    alone, _ = settle_confidence(DecodeSettings(n_best=5), {"val": val}, 0.95)
    assert decode == alone and decode.n_best == 5
    assert decode.calibration.temperature == fit_temperature(val.log_probs, val.correct).value
    assert said["temperature"] == {"value": decode.calibration.temperature, "reason": None}
    ece = said["splits"]["val"]["ece"]
    assert ece["after"]["value"] < 0.5 * ece["before"]["value"]
    worse = said["splits"]["test"]["ece"]
    assert worse["after"]["value"] > worse["before"]["value"], "what val's temperature does elsewhere is not hidden"


def test_the_threshold_keeps_the_stated_share_right_on_val_and_abstains_under_it():
    decode, said = settle_confidence(DecodeSettings(), {"val": answers(2.0)}, 0.95)
    kept = said["splits"]["val"]["answered"]
    assert kept["precision"] >= 0.95 and 0.4 < kept["coverage"] < 0.9
    assert said["abstain_below"] == decode.abstain_below
    confidences = np.exp(tempered(answers(2.0).log_probs, decode.calibration.temperature))
    assert kept["n"] == (confidences >= decode.abstain_below).sum()


def test_without_a_stated_precision_or_when_it_is_out_of_reach_nothing_abstains_anew():
    for settings in (DecodeSettings(), DecodeSettings(abstain_below=0.3)):
        decode, said = settle_confidence(settings, {"val": answers(1.0)}, None)
        assert decode.abstain_below == settings.abstain_below and said["abstention"] is None
    decode, said = settle_confidence(DecodeSettings(), {"val": answers(1.0, n=40)}, 0.98)
    assert decode.abstain_below == 0.0
    assert "40 answers are too few for a precision of 98.0%" in said["abstention"]["reason"]


def test_a_winner_that_reads_nothing_still_has_a_confidence():
    silent = Answers(np.log(np.linspace(0.1, 0.9, 30)), np.arange(30) % 2 == 0, np.zeros(0), np.zeros(0, bool))
    _, said = settle_confidence(DecodeSettings(), {"val": silent}, None)
    assert said["splits"]["val"]["characters"] is None
    assert said["character_temperature"]["value"] == 1.0


def test_an_experiment_states_a_precision_and_neither_a_temperature_nor_a_second_threshold():
    def declare(decode: dict, **changes: object) -> Experiment:
        candidate = {"family": "digits", "recognizer": "query-digits-nano", "decode": decode}
        return Experiment.model_validate({"name": "x", "candidates": [candidate], **changes})

    assert declare({}, abstain_for_precision=0.98).abstain_for_precision == 0.98
    assert declare({"abstain_below": 0.4}).abstain_for_precision is None
    with pytest.raises(ValueError, match="'digits' states decode.calibration"):
        declare({"calibration": {"temperature": 2.0}})
    with pytest.raises(ValueError, match="leave out one of them"):
        declare({"abstain_below": 0.4}, abstain_for_precision=0.98)
    with pytest.raises(ValueError, match="less than 1"):
        declare({}, abstain_for_precision=1.0)
