"""LoRA (arXiv 2106.09685) on any recognizer: low-rank updates of the linear layers of chosen parts, the rest frozen."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import sqrt
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from glyphrun.models.layers import Attention
from glyphrun.models.notices import without_torchao_notices
from glyphrun.models.recognizer import Recognizer

Part = Literal["vision", "projector", "decoder"]
Layers = Literal["head", "norms", "embeddings"]

_FACTOR = re.compile(r"\.lora_[AB](\.|$)")
_HEAD = re.compile(r"(^|[._])(head|output_projection|classifier)\.[^.]+$")
_EMBEDDING = re.compile(r"(embed|embeddings?|query|queries|token|table)$")
_IN_PROJECTION = "in_proj_weight"


class LoraSettings(BaseModel):
    """Which weights a training changes, and how freely.

    rank: of each update; 0 trains in full whatever the recognizer trains by itself, and the rest is ignored.
    alpha: an update is scaled by alpha / rank. dropout: of the input of an update, in training.
    targets: parts whose linear layers are updated; other layers of them stay as they are.
    unfrozen: what is trained in full beside the updates, and gets none: parts, the layers that give logits («head»), all
    normalisations («norms»), or embeddings of tokens, places and queries («embeddings»).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(0, ge=0)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[Part, ...] = ("vision", "decoder")
    unfrozen: tuple[Part | Layers, ...] = ()

    @model_validator(mode="after")
    def _every_part_in_one_way(self) -> LoraSettings:
        if self.rank and not self.targets:
            raise ValueError(
                f"lora.rank is {self.rank}, and lora.targets names no part: name one, or set the rank to 0"
            )
        both = [part for part in self.targets if part in self.unfrozen]
        if both:
            raise ValueError(
                f"lora.targets and lora.unfrozen both name {' and '.join(both)}: a part is adapted or trained in full"
            )
        return self


@dataclass(frozen=True)
class LowRank:
    """The two factors of a weight's update: a: (rank, inputs), b: (outputs, rank)."""

    a: Tensor
    b: Tensor
    scaling: float

    def dense(self) -> Tensor:
        """What is added to the weight, (outputs, inputs)."""
        return self.scaling * (self.b @ self.a)


class LowRankUpdate(nn.Module):
    """The update of a weight that no layer of its own multiplies, as a parametrization of it.

    Attention multiplies queries and keys by parts of one matrix, in calls of their own; peft sees calls of whole layers
    alone. The weight is computed before its inputs are known, so dropout takes the same features from all of them, as a
    recurrent network's does (arXiv 1512.05287).
    """

    def __init__(self, weight: Tensor, settings: LoraSettings) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(settings.rank, inputs))
        self.lora_B = nn.Parameter(weight.new_zeros(outputs, settings.rank))
        self.scaling = settings.alpha / settings.rank
        self.dropout = settings.dropout
        nn.init.kaiming_uniform_(self.lora_A, a=sqrt(5))

    def factors(self) -> LowRank:
        """The factors without dropout."""
        return LowRank(self.lora_A, self.lora_B, self.scaling)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (outputs, inputs) → the same, updated."""
        kept = F.dropout(self.lora_A.new_ones(weight.shape[1]), self.dropout, self.training)
        return weight + LowRank(self.lora_A * kept, self.lora_B, self.scaling).dense().to(weight.dtype)


def apply_lora(recognizer: Recognizer, settings: LoraSettings) -> None:
    """Add the updates, which change nothing at first, in place, and freeze the rest. Draws from torch's generator.

    A weight that two layers share (an output layer that is the embedding) gets no update: it would change both.
    Raises ValueError for a part that this recognizer lacks or that has no linear layer, naming those it has.
    """
    if settings.rank == 0:
        return
    if carries_lora(recognizer):
        raise ValueError("this recognizer carries LoRA already: merge it first")
    in_full = _in_full(recognizer, settings)
    layers, in_projections = _targets(recognizer, settings, in_full)
    if layers:
        with without_torchao_notices():
            from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=cast(int, settings.alpha),  # its annotation is narrower than what it does
            lora_dropout=settings.dropout,
            target_modules="|".join(map(re.escape, layers)),
        )
        inject_adapter_in_model(config, recognizer)
    for name in in_projections:
        attention = recognizer.get_submodule(name)
        update = LowRankUpdate(cast(Tensor, attention.in_proj_weight), settings)
        parametrize.register_parametrization(attention, _IN_PROJECTION, update)
    for name, parameter in recognizer.named_parameters():
        factor = _FACTOR.search(name) is not None
        parameter.requires_grad_(factor or parameter in in_full)
        if factor:
            parameter.data = parameter.data.float()  # steps are too small for the half precision of a large base
    recognizer.train(recognizer.training)  # new modules come in training mode, with dropout


@torch.no_grad()
def merge_lora(recognizer: Recognizer) -> None:
    """Add the updates to the weights, in place: the plain recognizer again, with every parameter free to be trained."""
    if not carries_lora(recognizer):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(recognizer.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(recognizer.get_submodule(parent), child, module.get_base_layer())
        elif isinstance(module, LowRankUpdate):
            attention = recognizer.get_submodule(name.rsplit(".", 3)[0])
            weight = recognizer.get_parameter(f"{name.rpartition('.')[0]}.original")
            weight.add_(module.factors().dense().to(weight.dtype))
            # remove_parametrizations would take the weight out of the class, which copies of this module share.
            del attention.parametrizations
            attention.__class__ = Attention
            attention.in_proj_weight, attention.in_proj_bias = weight, _taken_out(attention, "in_proj_bias")
    if hasattr(recognizer, "peft_config"):
        del recognizer.peft_config
    recognizer.requires_grad_(True)


def carries_lora(recognizer: nn.Module) -> bool:
    """True between ``apply_lora`` and ``merge_lora``."""
    return any(_FACTOR.search(name) for name, _ in recognizer.named_parameters())


def trainable_parameters(recognizer: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, of how many (the updates' own among them)."""
    counts = [(value.numel(), value.requires_grad) for value in recognizer.parameters()]
    return sum(count for count, trained in counts if trained), sum(count for count, _ in counts)


def plain_name(name: str) -> str:
    """The name that a parameter or buffer has without LoRA."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name.replace(".base_layer.", "."))


def plain_parameters(recognizer: nn.Module) -> dict[str, nn.Parameter]:
    """The recognizer's own parameters under the names that they have without LoRA."""
    return {plain_name(name): value for name, value in recognizer.named_parameters() if not _FACTOR.search(name)}


def plain_buffers(recognizer: nn.Module) -> dict[str, Tensor]:
    """The buffers of its state dict (running statistics) under the names that they have without LoRA."""
    stored = recognizer.state_dict().keys()
    return {plain_name(name): value for name, value in recognizer.named_buffers() if name in stored}


def updates(recognizer: nn.Module) -> dict[str, LowRank]:
    """The update of every adapted weight, under the name that the weight has without LoRA."""
    if not carries_lora(recognizer):
        return {}
    from peft.tuners.lora import LoraLayer

    found: dict[str, LowRank] = {}
    for name, module in recognizer.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            a, b = (cast(Tensor, factor[adapter].weight) for factor in (module.lora_A, module.lora_B))
            found[f"{plain_name(name)}.weight"] = LowRank(a, b, module.scaling[adapter])
        elif isinstance(module, LowRankUpdate):
            attention, _, tensor, _ = name.rsplit(".", 3)
            found[f"{attention}.{tensor}"] = module.factors()
    return found


def _targets(recognizer: Recognizer, settings: LoraSettings, in_full: set[nn.Parameter]) -> tuple[list[str], list[str]]:
    """Names of the linear layers to update, and of the attentions whose input projection is a bare matrix."""
    parts = recognizer.parts()
    owners = Counter(parameter for _, parameter in recognizer.named_parameters(remove_duplicate=False))
    layers: list[str] = []
    in_projections: list[str] = []
    reached = set()
    for name, module in recognizer.named_modules():
        part = _part_of(name, parts)
        bare = isinstance(module, Attention)
        if part is None or not (bare or isinstance(module, nn.Linear)):
            continue
        weight = cast(nn.Parameter, module.in_proj_weight if bare else module.weight)
        if owners[weight] > 1 or weight in in_full:
            continue
        reached.add(part)
        if part in settings.targets:
            (in_projections if bare else layers).append(name)
    for target in settings.targets:
        if target not in reached:
            raise ValueError(
                f"lora.targets names {target}, and this {_kind(recognizer)} has no frozen linear layer there; its parts "
                f"are {', '.join(parts)}, and those with one are {', '.join(sorted(reached)) or 'none'}"
            )
    return layers, in_projections


def _in_full(recognizer: Recognizer, settings: LoraSettings) -> set[nn.Parameter]:
    """The parameters that are trained in full beside the updates."""
    parts = recognizer.parts()
    chosen: set[nn.Parameter] = set()
    for what in settings.unfrozen:
        found: set[nn.Parameter] = set()
        for name, parameter in recognizer.named_parameters(remove_duplicate=False):
            module = recognizer.get_submodule(name.rpartition(".")[0])
            if (
                (what == "head" and _HEAD.search(name))
                or (what == "norms" and "norm" in type(module).__name__.lower())
                or (what == "embeddings" and (isinstance(module, nn.Embedding) or _EMBEDDING.search(name)))
                or what == _part_of(name, parts)
            ):
                found.add(parameter)
        if not found:
            raise ValueError(
                f"lora.unfrozen names {what}, and this {_kind(recognizer)} has no such weights; its parts are "
                f"{', '.join(parts)}, head, norms and embeddings name layers of all parts, and a decoder whose output "
                "layer is its embedding has embeddings alone"
            )
        chosen |= found
    return chosen


def _part_of(name: str, parts: dict[str, tuple[str, ...]]) -> str | None:
    """The part that a module or parameter belongs to; a part inside another's module is named by the longer prefix."""
    owners = {
        prefix: part
        for part, prefixes in parts.items()
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    }
    return owners[max(owners, key=len)] if owners else None


def _kind(recognizer: Recognizer) -> str:
    return getattr(recognizer.settings, "kind", type(recognizer).__name__)


def _taken_out(module: nn.Module, name: str) -> nn.Parameter:
    """A parameter that is set again after others, so that parameters have their first order: optimizers count on it."""
    parameter = module.get_parameter(name)
    delattr(module, name)
    return parameter
