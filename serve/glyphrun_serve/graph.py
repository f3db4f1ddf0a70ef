"""The serving graph of a bundle: gateway → preprocess → recognizers, which vote in the gateway where they are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve

from glyphrun.adapter_shelf import shelve
from glyphrun.bundle import MEMBERS, BundleManifest, parse_manifest, provenance_of, read_manifest
from glyphrun.device import Precision
from glyphrun.images import ImageProcessor
from glyphrun.members import Jury
from glyphrun.shelved import Shelved
from glyphrun_serve.access import Guard
from glyphrun_serve.batching import Batching
from glyphrun_serve.deployments import RecognizerReplica
from glyphrun_serve.ingress import Ingress
from glyphrun_serve.limits import Limits
from glyphrun_serve.preprocess import Preprocess
from glyphrun_serve.release_root import ReleaseRoot, Terms
from glyphrun_serve.sample_log import SampleLog
from glyphrun_serve.schemas import ModelCard
from glyphrun_serve.served_model import Release

GATEWAY, PREPROCESS, RECOGNIZER, ROOT = "gateway", "preprocess", "recognizer", "release"
# After the deadline of the routes, for what that did not cut off.
GRACE_S = 10.0

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Resources:
    """What the recognizers of a graph have for each replica; members of an ensemble share it in equal parts.

    preprocess: whether there are replicas that decode images.
    """

    replicas: int = 1
    cpus: float = 1
    gpus: float = 0
    preprocess: bool = False

    def each(self, recognizers: int) -> tuple[float, float]:
        """Processors and GPUs of a replica of each of so many recognizers."""
        return self.cpus / recognizers, self.gpus / recognizers


@dataclass(frozen=True)
class Plant:
    """What a bundle's replicas are made with.

    options: those of Serve that differ from what is set here, by deployment. surge: whether recognizers are up before those
    whose place they take go, which needs room for both. adapters: folders of what is trained on the bundle, by the names
    that requests have for them; adapter_bytes: what a replica may hold of them.
    """

    limits: Limits
    batching: Batching
    precision: Precision | None
    resources: Resources
    options: Options
    surge: bool = True
    adapters: Mapping[str, Path] = field(default_factory=dict)
    adapter_bytes: int = 0


def graph(
    bundle: Path, plant: Plant, *, guard: Guard, terms: Terms | None = None, log_samples: SampleLog | None = None
) -> serve.Application:
    """The deployments of a bundle behind a gateway. terms: what it tells whoever replaces the release.

    Raises BundleError, AdapterError, and ValueError for options of a deployment that there is not.
    """
    gateway = _deployment(
        serve.ingress()(Ingress), GATEWAY, plant, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    return gateway.bind(bound_release(bundle, plant), plant.limits, guard, log_samples, terms)


def challenger_graph(bundle: Path, plant: Plant, terms: Terms) -> serve.Application:
    """The same without a gateway, for that of another release to ask."""
    # No request passes through the root, so it need not wait for any when it goes.
    root = serve.deployment(name=ROOT, graceful_shutdown_wait_loop_s=0.1, ray_actor_options={"num_cpus": 0})(
        ReleaseRoot
    )
    return root.bind(bound_release(bundle, plant), terms)


def bound_release(bundle: Path, plant: Plant) -> Release:
    """A release with applications in the places of handles, which Serve makes of them before a deployment has it."""
    manifest = read_manifest(bundle)
    shelved = shelve(bundle, manifest, plant.adapters, plant.adapter_bytes)
    parts = parts_of(bundle, manifest)
    resources, batching, limits = plant.resources, plant.batching, plant.limits
    expect_deployments(plant.options, deployments_of(parts, resources.preprocess))
    processors = tuple(dict.fromkeys(part.processor for part in parts.values()))
    # Above it a request is refused in the one error shape, which Serve's own would not have.
    queued = max(16 * batching.most, 4 * limits.items)
    cpus, gpus = resources.each(len(parts))
    recognizers: dict[str, Any] = {
        name: _deployment(
            RecognizerReplica,
            part.deployment,
            plant,
            num_replicas=resources.replicas,
            # Twice a batch, so that the next one fills while one is read.
            max_ongoing_requests=2 * batching.most,
            max_queued_requests=queued,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        ).bind(part.folder, batching, plant.precision, processors.index(part.processor), shelved, plant.adapter_bytes)
        for name, part in parts.items()
    }
    # It and the gateway reserve nothing, so that the whole graph has room on one processor; t4.yaml says what they take on
    # many.
    preprocess: Any = _deployment(
        Preprocess,
        PREPROCESS,
        plant,
        max_ongoing_requests=2 * batching.most,
        max_queued_requests=queued,
        ray_actor_options={"num_cpus": 0},
    ).bind(processors)
    card = model_card(bundle)
    return Release(
        card,
        processors,
        recognizers,
        preprocess if resources.preprocess else None,
        jury_of(bundle, manifest),
        {name: adapted_card(card, name, adapter) for name, adapter in shelved.items()},
    )


@dataclass(frozen=True)
class Part:
    """A bundle of the graph that has replicas of its own."""

    deployment: str
    folder: Path
    processor: ImageProcessor
    decode: dict[str, Any]


def parts_of(bundle: Path, manifest: BundleManifest) -> dict[str, Part]:
    """A recognizer for each member that votes, by its name; a single one and members that are averaged are one."""
    if jury_of(bundle, manifest) is None:
        return {RECOGNIZER: _part(RECOGNIZER, bundle, manifest)}
    homes = {member: bundle / MEMBERS / member for member in manifest.recognizer["members"]}
    return {member: _part(f"{RECOGNIZER}-{member}", home, parse_manifest(home)) for member, home in homes.items()}


def jury_of(bundle: Path, manifest: BundleManifest) -> Jury | None:
    """How the members of a bundle vote; None where one recognizer answers, or several that are averaged."""
    if manifest.ensemble is None or manifest.ensemble.vote == "average":
        return None
    return Jury(manifest.ensemble, manifest.decode, provenance_of(manifest), bundle)


def deployments_of(parts: Mapping[str, Part], preprocess: bool) -> list[str]:
    """What the deployments of a graph are called."""
    return [GATEWAY, *([PREPROCESS] if preprocess else []), *(part.deployment for part in parts.values())]


def expect_deployments(options: Options, known: Sequence[str]) -> None:
    """Raises ValueError for options of a deployment that the graph lacks."""
    for name in options:
        if name not in known:
            raise ValueError(f"this bundle's graph has no deployment {name!r}; it has {', '.join(known)}")


def model_card(bundle: Path) -> ModelCard:
    """What clients are told about the model of a bundle whose hashes are known to be right."""
    manifest = parse_manifest(bundle)
    parts = parts_of(bundle, manifest)
    declared = manifest.model_dump(mode="json")
    decode = declared["decode"]
    if declared["ensemble"]:
        decode = {"ensemble": declared["ensemble"], **decode}
    if len(parts) > 1:
        decode["members"] = {name: part.decode for name, part in parts.items()}
    return ModelCard(
        name=manifest.name,
        version=str(manifest.version),
        kind=manifest.recognizer["kind"],
        members=manifest.recognizer.get("members", {}),
        vote=manifest.ensemble.vote if manifest.ensemble else None,
        charset=manifest.codec.get("charset", ""),
        max_length=manifest.codec["max_length"],
        height=manifest.processor.height,
        width=manifest.processor.width,
        decode=decode,
        metrics=manifest.metrics,
        provenance=manifest.provenance,
    )


def adapted_card(card: ModelCard, name: str, adapter: Shelved) -> ModelCard:
    """What clients are told about a model that reads with an adapter, which nobody has scored."""
    told = {"adapter": name, "adapter_rank": str(adapter.rank), "adapter_sha256": adapter.tensors}
    return card.model_copy(
        update={"name": f"{card.name}:{name}", "metrics": {}, "provenance": {**card.provenance, **told}}
    )


def _part(deployment: str, folder: Path, manifest: BundleManifest) -> Part:
    return Part(deployment, folder, manifest.processor, manifest.decode.model_dump(mode="json"))


def _deployment(shell: type, name: str, plant: Plant, **defaults: Any) -> serve.Deployment:
    chosen = {**defaults, **plant.options.get(name, {})}
    if chosen.get("autoscaling_config") is not None:
        chosen.pop("num_replicas", None)
    # By default Serve stops a replica before the one that takes its place is up, and before what it reads is answered.
    lasting = {"max_surge_percent": 100, "graceful_shutdown_timeout_s": plant.limits.answer_s + GRACE_S}
    if name.startswith(RECOGNIZER) and not plant.surge:
        chosen["max_surge_percent"] = 0
    return serve.deployment(name=name, **{**lasting, **chosen})(shell)
