"""What runs beside a sweep on the same nodes, and how much of their memory its data take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from glyphrun.data.sample import read_card
from glyphrun.images import ImageProcessor
from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.preflight import ACCELERATOR, Need

REPLICAS = "recognizer"  # the deployment that computes; the HTTP ingress reserves nothing


def data_need(cpus: int) -> Need:
    """What the tasks of Ray Data are to have, a processor each."""
    return Need("Ray Data", {"CPU": 1.0}, workers=cpus)


def serve_needs(path: Path) -> list[Need]:
    """What the replicas of a Serve config take, an application each. Raises ExperimentError for what is no Serve config."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [_replicas(application) for application in declared["applications"]]
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


def _replicas(application: dict[str, Any]) -> Need:
    given = application.get("args", {})
    declared = {one["name"]: one for one in application.get("deployments", [])}.get(REPLICAS, {})
    options = declared.get("ray_actor_options", {})
    resources = {
        "CPU": float(options.get("num_cpus", given.get("cpus", 1))),
        "GPU": float(options.get("num_gpus", given.get("gpus", 0))),
        **options.get("resources", {}),
    }
    if kind := options.get("accelerator_type"):
        resources[f"{ACCELERATOR}{kind}"] = 0.001
    return Need(
        f"Serve's {application['name']}", resources, int(declared.get("num_replicas", given.get("replicas", 1)))
    )
