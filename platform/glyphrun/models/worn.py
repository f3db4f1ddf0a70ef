"""A plain recognizer with what an adapter changed, for as long as a batch is read, and then the same bit for bit.

Nothing is added to a weight: what was added in floating point cannot be taken off again exactly, and a sum of its own
would be a copy of every adapted matrix. The factors of an update are multiplied beside their layer, which costs
rank · (inputs + outputs) products for each row where the layer costs inputs · outputs. What was trained in full takes the
place of the recognizer's own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from glyphrun.models.layers import Attention, linear_beside
from glyphrun.models.lora import plain_buffers, plain_parameters

Factors = tuple[Tensor, Tensor]
"""(rank, inputs) and (outputs, rank), the second scaled."""


@dataclass(frozen=True)
class Changes:
    """What an adapter holds, in the precision and on the device of the recognizer that is to wear it.

    updates: the factors for weights of linear layers and for input projections of attention; whole: other parameters and
    buffers. Both by the names that a plain recognizer has for them.
    """

    updates: Mapping[str, Factors]
    whole: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.whole.values(), *(factor for pair in self.updates.values() for factor in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Wardrobe:
    """The places in a plain recognizer where changes are worn, which are looked up once."""

    def __init__(self, recognizer: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {**plain_parameters(recognizer), **plain_buffers(recognizer)}
        self._layers = {name: recognizer.get_submodule(name.rpartition(".")[0]) for name in self.tensors}

    def takes_update(self, weight: str) -> bool:
        """Whether low-rank factors can be multiplied beside this weight."""
        layer, own = self._layers.get(weight), weight.rpartition(".")[2]
        return (isinstance(layer, Attention) and own == "in_proj_weight") or (
            isinstance(layer, nn.Linear) and own == "weight"
        )

    @contextmanager
    def worn(self, changes: Changes) -> Iterator[None]:
        """Within it the recognizer computes with the changes. It must not be asked by another thread meanwhile."""
        with ExitStack() as taken_off:
            for name, (a, b) in changes.updates.items():
                layer = self._layers[name]
                if isinstance(layer, Attention):
                    taken_off.callback(setattr, layer, "beside", None)
                    layer.beside = a, b
                else:
                    taken_off.callback(layer.register_forward_hook(_beside(a, b)).remove)
            for name, value in changes.whole.items():
                own = self.tensors[name]
                taken_off.callback(setattr, own, "data", own.data)
                own.data = value
            yield


def _beside(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    return lambda layer, inputs, output: linear_beside(output, inputs[0], a, b)
