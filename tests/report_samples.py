"""A run's results and tracklets as a report shows them, with nothing trained for them."""

from __future__ import annotations

import copy
import io
import itertools
import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from glyphrun.decoding.settings import DecodeSettings
from glyphrun.evaluation.calibration import Answers
from glyphrun.evaluation.importance import importance
from glyphrun.evaluation.pareto import pareto_front
from glyphrun.report.render import Example
from glyphrun.sweeps.confidence import settle_confidence

FAMILIES = (
    ("Temporal PARSeq", "parseq-digits-nano", 0.953, 11.0),
    ("PARSeq with votes", "parseq-votes-nano", 0.905, 20.5),
    ("Temporal ViT", "query-digits-nano", 0.936, 6.2),
)


def sample_results(seed: int = 7) -> dict[str, Any]:
    """A plausible run of 10 trials: four that finished, five that ASHA stopped, one that failed."""
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    for index in range(10):
        family, recognizer, best, latency = FAMILIES[index % 3]
        width = (64, 96, 128)[(index // 3) % 3]
        p50 = latency * width / 96
        status = "failed" if index == 7 else "finished" if index in (0, 1, 2, 3) else "stopped"
        step = {"finished": 900, "stopped": (100, 300)[index % 2], "failed": 60}[status]
        top = best - 0.012 * (index // 3)
        steps = range(20, step + 1, 20)
        curve = [
            {
                "step": at,
                "seconds": at * 0.11,
                "train_loss": 2.2 * math.exp(-at / (170 + 60 * (index % 3))) + 0.12 + 0.05 * float(rng.random()),
                "exact": max(
                    0.0,
                    top * (1 - math.exp(-max(at - 60, 0) / (110 + 45 * (index % 3)))) + 0.012 * float(rng.normal()),
                ),
                "cer": 0.02,
            }
            for at in steps
        ]
        exact = None if status == "failed" else round(curve[-1]["exact"] if status == "stopped" else top, 4)
        trials.append(
            {
                "id": f"trial-{index:02d}",
                "recognizer": recognizer,
                "family": family,
                "changes": {
                    "learning_rate": 0.002 / (1 + index % 4),
                    "encoder.width": width,
                },
                "status": status,
                "reason": {
                    "stopped": f"rung {step}: below the best third",
                    "failed": "the loss was not finite at step 61 (nan); lower the learning rate",
                }.get(status),
                "step": step,
                "max_steps": 900,
                "seconds": step * 0.11,
                "retried": "batch_size 32 became 16, accumulated 2 times: memory ran out" if index == 3 else None,
                "parents": [{"step": 200, "trial": "trial-01"}] if index == 2 else [],
                "configuration": index,
                "parameters": 4000 * width,
                "gflops": 0.0123 * width,
                "memory_mib": 0.03 * width,
                "items_per_s": 3e4 / (width * p50),
                "latency_ms": None if status == "failed" else {"p50": p50, "p95": p50 * 1.3},
                "val": None
                if exact is None
                else {
                    "n": 600,
                    "exact": exact,
                    "exact_ci": [exact - 0.018, exact + 0.016],
                    "cer": 0.6 * (1 - exact),
                    "wer": 1 - exact,
                },
                "curve": curve,
                "within_budget": status != "failed" and p50 <= 20,
                "on_front": False,
            }
        )
    scored = [trial for trial in trials if trial["val"]]
    for trial in scored:
        trial["on_front"] = not any(
            other["val"]["exact"] > trial["val"]["exact"] and other["latency_ms"]["p50"] <= trial["latency_ms"]["p50"]
            for other in scored
        )
    return {
        "schema": 1,
        "importance": importance(trials).to_json(),
        "run": {
            "name": "demo-digits-2026-05-14",
            "started": "2026-05-14T09:21:30+00:00",
            "finished": "2026-05-14T09:30:02+00:00",
            "seconds": 512,
            "experiment_hash": "9f2c51e07d3b",
            "seed": 7,
            "code_version": "0.1.0+4c9130d",
            "machine": {"cpu": "Intel Xeon (Sapphire Rapids)", "cores": 2, "memory_gib": 8.0, "precision": "bf16"},
            "packages": {"ray": "2.60.0", "torch": "2.11.0", "timm": "1.0.22", "python": "3.11.9"},
            "dataset": {
                "name": "shirt-numbers",
                "hash": "3b7e" * 16,
                "counts": {"train": 9000, "val": 600, "test": 800, "unseen": 500},
            },
        },
        "budget": {"latency_ms": 20.0},
        "trials": trials,
        "winner": "trial-00",
        "selection": {
            "rule": "The best exact match on val among the trials whose p50 latency meets the budget.",
            "reason": "It has the best exact match on val of the 7 trials within 20 ms, 1.7 points ahead of trial-02.",
        },
        "splits": {
            "val": split_scores(600, 0.953, {"0": 0.93, "1": 0.97, "2": 0.948}, []),
            "test": split_scores(
                800,
                0.946,
                {"0": 0.925, "1": 0.965, "2": 0.942},
                [("17", "11", 4), ("38", "33", 4), ("", "7", 3), ("5", "", 3), ("49", "44", 3), ("71", "11", 2), ("64", "6", 2)],
            ),
            "unseen": split_scores(
                500,
                0.902,
                {"2": 0.902},
                [("74", "14", 6), ("38", "33", 3), ("97", "91", 4), ("53", "33", 2), ("96", "69", 2), ("20", "26", 1), ("85", "35", 1)],
            ),
        },
        "confidence": copy.deepcopy(sample_confidence()),
    }  # fmt: skip


def sample_search(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with a search over 28 ways of reading three of the trials, one without a CER; a pair of them wins."""
    rng = np.random.default_rng(11)
    survivors = ["trial-00", "trial-02", "trial-03"]
    groups = [group for size in (1, 2, 3) for group in itertools.combinations(survivors, size)]
    own = {trial["id"]: trial for trial in results["trials"]}
    points = []
    for group, (search, slower, better) in itertools.product(
        groups,
        [("greedy", 1.0, 0.0), ("beam, width 3", 1.6, 0.006), ("beam, width 5", 2.3, 0.008), ("sample", 2.0, -0.03)],
    ):
        exact = (
            max(own[one]["val"]["exact"] for one in group)
            + better
            + (0.0, 0.012, 0.008)[len(group) - 1]
            + 0.003 * rng.normal()
        )
        p50 = slower * sum(own[one]["latency_ms"]["p50"] for one in group) * (0.45 if len(group) > 1 else 0.6)
        memory = sum(own[one]["memory_mib"] for one in group)
        cer = None if group == groups[-1] and search == "sample" else 0.6 * (1 - exact)
        change = {"difference": 0.0 - 0.4 * better, "ci": [-0.4 * better - 0.002, -0.4 * better + 0.002], "p": 0.03}
        vote = "majority" if len(group) > 1 else None
        who = f"{len(group)} members, majority" if vote else group[0]
        told = [who, search, *(["+".join(group)] if vote else [])]
        points.append(
            {
                "name": ", ".join(told),
                "members": list(group),
                "ensemble_vote": vote,
                "decode": {},
                "n": 600,
                "exact": exact,
                "exact_ci": [exact - 0.017, exact + 0.014],
                "cer": cer,
                "cer_ci": [None, None] if cer is None else [0.8 * cer, 1.25 * cer],
                "wer": 1 - exact,
                "against_greedy": {"exact": change, "cer": None if cer is None else change},
                "latency_ms": {"p50": p50, "p95": 1.2 * p50},
                "memory_mib": memory,
                "items_per_s": 3e3 / p50,
                "cost": p50 * 0.35 / 3.6,
                "within_budget": p50 <= 20,
                "over_budget": [] if p50 <= 20 else ["ms"],
            }
        )
    front = pareto_front(
        {point["name"]: (point["exact"], -point["latency_ms"]["p50"], -point["memory_mib"]) for point in points}
    )
    chosen = max((point for point in points if point["within_budget"]), key=lambda point: point["exact"])
    points = [{**point, "on_front": point["name"] in front} for point in points]
    return {
        **results,
        "winner": chosen["members"][0],
        "selection": {
            "rule": "The highest exact match on val among the ways of reading on the Pareto front whose median latency meets "
            "the budget; ties go to the faster.",
            "reason": f"{chosen['name']} reads {chosen['exact']:.1%} of val exactly at {chosen['latency_ms']['p50']:.1f} ms.",
        },
        "decode_search": {
            "survivors": survivors,
            "left_out": 0,
            "measures": ["exact", "ms", "memory"],
            "front": sorted(front),
            "chosen": chosen["name"],
            "points": points,
        },
    }


@cache
def sample_confidence() -> dict[str, Any]:
    """What a sweep says of a winner's confidence that is right once val's temperature, 1.8, is taken out of it.

    Its intervals take more than a second.
    """
    rng = np.random.default_rng(5)
    read = {}
    for split, n, odds, drift in (("val", 600, 4.2, 1.0), ("test", 800, 4.1, 1.1), ("unseen", 500, 3.2, 1.3)):
        honest = rng.normal(odds, 1.9, n)
        log_probs, right = -np.logaddexp(0, -honest * 1.8 * drift), rng.random(n) < 1 / (1 + np.exp(-honest))
        read[split] = Answers(log_probs, right, np.repeat(log_probs / 2, 2), np.repeat(right, 2))
    return settle_confidence(DecodeSettings(), read, 0.98)[1]


def split_scores(
    n: int, exact: float, by_length: dict[str, float], wrong: list[tuple[str, str, int]]
) -> dict[str, Any]:
    margin = 1.96 * math.sqrt(exact * (1 - exact) / n)
    cer = 0.6 * (1 - exact)
    return {
        "n": n,
        "exact": exact,
        "exact_ci": [exact - margin, exact + margin],
        "cer": cer,
        "cer_ci": [cer * 0.8, cer * 1.25],
        "wer": 1 - exact,
        "wer_ci": [1 - exact - margin, 1 - exact + margin],
        "ms_per_sample": 3.4,
        "samples_per_s": 294.0,
        "by_length": {length: {"n": n // 3, "exact": value} for length, value in by_length.items()},
        "confusions": [{"truth": truth, "reading": reading, "n": count} for truth, reading, count in wrong],
    }


def drawn_frame(text: str, shirt: int, rng: np.random.Generator) -> bytes:
    """A frame of 64 by 64 pixels with the number on a shirt, tilted and blurred; PNG or JPEG."""
    shirts = ("#b02a30", "#1f3f8a", "#e8e8e4", "#17181a", "#1d7a46", "#e6c12c")
    ink = "#16181c" if shirt in (2, 5) else "#f4f4f0"
    image = Image.new("RGB", (64, 64), shirts[shirt])
    draw = ImageDraw.Draw(image)
    draw.text((32, 32), text, fill=ink, font=ImageFont.load_default(size=36), anchor="mm")
    image = image.rotate(float(rng.normal(0, 9)), fillcolor=shirts[shirt])
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 2.6))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 7, (64, 64, 1))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG" if shirt % 2 else "PNG")
    return buffer.getvalue()


def sample_examples(n: int = 24, seed: int = 3) -> list[Example]:
    """Tracklets of 3 to 8 drawn frames; numbers 4, 11 and 18 are read wrongly, number 9 is not readable."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(n):
        truth = "" if index == 9 else str(rng.integers(1, 99))
        reading = {4: truth[::-1] + "1", 11: "", 18: f"1{truth}"}.get(index, truth)
        shirt = int(rng.integers(6))
        frames = tuple(drawn_frame(truth, shirt, rng) for _ in range(rng.integers(3, 9)))
        votes = tuple((reading if rng.random() < 0.8 else "", float(rng.random())) for _ in frames)
        confidence = float(rng.uniform(0.35, 0.7) if reading != truth else rng.uniform(0.8, 0.999))
        examples.append(
            Example(
                f"test-{index:05d}",
                "test",
                truth,
                reading,
                confidence,
                frames,
                votes if index % 3 else (),
            )
        )
    return examples
