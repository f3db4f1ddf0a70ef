"""What runs beside a sweep on the same nodes, and how much of their memory its data take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from glyphrun.data.sample import read_card
from glyphrun.images import ImageProcessor
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.preflight import ACCELERATOR, Need

REPLICAS = "recognizer"  # the deployment that computes, or recognizer-MEMBER for each of an ensemble


def data_need(cpus: int) -> Need:
    """What the tasks of Ray Data are to have, a processor each."""
    return Need("Ray Data", {"CPU": 1.0}, workers=cpus)


def serve_needs(path: Path) -> list[Need]:
    """What the replicas of a Serve config take at first. Raises ExperimentError for what is no Serve config."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [need for application in declared["applications"] for need in _replicas(application)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ExperimentError(f"{path} is no Serve config: it has no applications") from None


def decoded_bytes(dataset: Path, processors: Iterable[ImageProcessor]) -> int:
    """At most how much train and val take decoded, once for each way of preparing frames, in main and in shared memory.

    Frames are counted by the shards' own statistics, so no image is read.
    """
    card = read_card(dataset)
    samples = sum(card.counts.values())
    share = (card.counts.get("train", 0) + card.counts.get("val", 0)) / max(samples, 1)
    frames = sum(_frames(dataset / shard.file) for shard in card.shards)
    return round(frames * share * sum(3 * processor.height * processor.width for processor in processors))


def _frames(shard: Path) -> int:
    metadata = pq.read_metadata(shard)
    columns = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
    place = next(place for place, path in enumerate(columns) if path.startswith("frames"))
    return sum(metadata.row_group(group).column(place).num_values for group in range(metadata.num_row_groups))


def _replicas(application: dict[str, Any]) -> Iterator[Need]:
    """Recognizers that the config does not name are as its arguments say; other deployments reserve what is named alone."""
    given = application.get("args", {})
    declared = {one["name"]: one for one in application.get("deployments", [])}
    recognizers = [name for name in declared if name.startswith(REPLICAS)] or [REPLICAS]
    for name in dict.fromkeys([*recognizers, *declared]):
        deployment, computes = declared.get(name, {}), name in recognizers
        options = deployment.get("ray_actor_options", {})
        share = 1 / len(recognizers) if computes else 0
        resources = {
            "CPU": float(options.get("num_cpus", share * given.get("cpus", 1))),
            "GPU": float(options.get("num_gpus", share * given.get("gpus", 0))),
            **options.get("resources", {}),
        }
        if kind := options.get("accelerator_type"):
            resources[f"{ACCELERATOR}{kind}"] = 0.001
        scaling = deployment.get("autoscaling_config") or {"min_replicas": given.get("replicas", 1) if computes else 1}
        if computes or any(resources.values()):
            what = application["name"] if name == REPLICAS else f"{application['name']}, {name},"
            yield Need(
                f"Serve's {what}", resources, int(deployment.get("num_replicas", scaling.get("min_replicas", 1)))
            )
