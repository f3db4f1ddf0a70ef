"""Whether a sweep can run at all on some nodes, and how many of its trials at once: asked before anything waits for ever.

Ray starts nothing that does not fit and says nothing either: a trial that asks for more than any node has, workers that
find no room together, and a pipeline of Ray Data whose processors are all held by trials wait without an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from glyphrun.sweeps.errors import ExperimentError
from glyphrun.sweeps.experiment import Experiment
from glyphrun.sweeps.nodes import CLUSTER_FILE, Node

ACCELERATOR = "accelerator_type:"
CHANGES = {"CPU": "resources.cpus", "GPU": "resources.gpus"}


@dataclass(frozen=True)
class Need:
    """What runs at once for one thing: ``workers`` processes, each with these resources on a node of its own or a shared one."""

    what: str
    resources: Mapping[str, float]
    workers: int = 1

    @property
    def asked(self) -> dict[str, float]:
        return {name: amount for name, amount in self.resources.items() if amount > 0}


@dataclass(frozen=True)
class Plan:
    """gpus: what a trial takes that says nothing of them; refusals: why the sweep would never end, and what to change."""

    gpus: int
    max_concurrent_trials: int
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def preflight(
    experiment: Experiment,
    nodes: Sequence[Node],
    beside: Sequence[Need] = (),
    *,
    held: bool = False,
    trials: int | None = None,
) -> Plan:
    """How many trials run at once on these nodes, or why none ever would.

    beside: what runs as long as the trials do, such as Ray Data's tasks or the replicas of Serve. held: what is not free
    now stays so, as where Serve already runs; else it is taken to be given back. trials: as many as the experiment says.
    """
    gpus = int(any(node.total.get("GPU", 0) > 0 for node in nodes))
    needs = _trial_needs(experiment, gpus)
    refusals = [said for need in needs if (said := _refusal(need, nodes, experiment.workers_per_trial)) is not None]
    if refusals:
        return Plan(gpus, 0, tuple(dict.fromkeys(refusals)))
    room = _Room(nodes, held)
    for need in beside:
        if not room.place(need):
            return Plan(
                gpus, 0, (f"{_asks(need)}, for which there is no room even without trials: {_what_there_is(nodes)}",)
            )
    crowded = [need for need in needs if not room.copy().place(need)]
    if crowded:
        return Plan(gpus, 0, tuple(_crowded(need, beside, nodes, held) for need in crowded))
    # One trial reserves all that it takes in one go, so that more of them only wait; what stands outside of such a
    # reservation is left its room by counting every trial as the largest.
    outside = bool(beside) or experiment.workers_per_trial > 1
    total = experiment.trials if trials is None else trials
    at_once = max(room.count([_largest(needs)] if outside else needs, total), 1)
    return Plan(gpus, at_once, notes=tuple(_notes(room, at_once, total, nodes)))


def require(experiment: Experiment, nodes: Sequence[Node], *, held: bool = False, trials: int | None = None) -> Plan:
    """The plan of a sweep that is about to start. Raises ExperimentError with what stands against it."""
    plan = preflight(experiment, nodes, held=held, trials=trials)
    if plan.refusals:
        unknown = (
            "" if any(node.starts for node in nodes) else f"; for a cluster that grows, set {CLUSTER_FILE} to its file"
        )
        raise ExperimentError("; ".join(plan.refusals) + unknown)
    return plan


class _Room:
    """What is left of each node while needs are placed on them, one after another."""

    def __init__(self, nodes: Sequence[Node], held: bool) -> None:
        self.nodes = nodes
        self.left = [dict(node.free if held else node.total) for node in nodes]

    def copy(self) -> _Room:
        other = _Room(self.nodes, held=False)
        other.left = [dict(left) for left in self.left]
        return other

    def place(self, need: Need) -> bool:
        """Take room for all workers of a need, or none: nodes without a GPU and nodes that run come first."""
        before = [dict(left) for left in self.left]
        for _ in range(need.workers):
            fitting = [place for place, left in enumerate(self.left) if _fits(need.asked, left)]
            if not fitting:
                self.left = before
                return False
            place = min(fitting, key=lambda place: self._spared(place, need))
            for name, amount in need.asked.items():
                if not name.startswith(ACCELERATOR):  # names a kind; there is no end to it
                    self.left[place][name] -= amount
        return True

    def _spared(self, place: int, need: Need) -> tuple[float, bool, float]:
        left = self.left[place]
        return (left.get("GPU", 0) if "GPU" not in need.asked else 0, self.nodes[place].starts, left.get("CPU", 0))

    def count(self, needs: Sequence[Need], limit: int) -> int:
        """How many of the needs, the smallest first, there is room for at once; they take it."""
        placed = 0
        for need in sorted(needs, key=lambda need: (need.resources.get("GPU", 0), need.resources.get("CPU", 0))):
            while placed < limit and self.place(need):
                placed += 1
        return placed


def _trial_needs(experiment: Experiment, gpus: int) -> list[Need]:
    return [
        Need(
            f"a trial of {candidate.family!r}",
            experiment.resources_of(candidate).needed(gpus),
            experiment.workers_per_trial,
        )
        for candidate in experiment.candidates
    ]


def _refusal(need: Need, nodes: Sequence[Node], workers: int) -> str | None:
    """Why a need would wait for ever even if all nodes were empty; None if it would not."""
    for name, amount in need.asked.items():
        most = max((node.total.get(name, 0) for node in nodes), default=0)
        if amount <= most:
            continue
        if name.startswith(ACCELERATOR):
            said = f"{need.what} asks for a {_kind(name)}, and no node has one ({_kinds(nodes)}): "
            return said + "change resources.accelerator_type, or start such nodes"
        has = f"has more than {most:g}" if most else "has any"
        lower = (
            f"lower {CHANGES.get(name, name)} to at most {most:g}" if most else f"set {CHANGES.get(name, name)} to 0"
        )
        return f"{need.what} asks for {amount:g} {name}, and no node {has}: {lower}, or start larger nodes"
    slots = sum(_slots(need.asked, node.total) for node in nodes)
    if not slots:
        return (
            f"{need.what} asks for {_amounts(need.asked)} on one node, and no node has them together: "
            f"{_what_there_is(nodes)}; ask for less of one"
        )
    if slots < need.workers:
        return (
            f"workers_per_trial is {workers}, each with {_amounts(need.asked)}, and the cluster has room for {slots}: "
            "lower workers_per_trial or resources.cpus"
        )
    return None


def _crowded(need: Need, beside: Sequence[Need], nodes: Sequence[Node], held: bool) -> str:
    others = [_asks(other) for other in beside]
    if held:
        others.append("what already runs here stays, as Serve does")
    data = any(other.what == "Ray Data" for other in beside)
    waits = " Its tasks would wait for the trials, and whoever reads from it for them." if data else ""
    return (
        f"{_asks(need)}, and beside it {'; '.join(others)}: together they do not fit.{waits} "
        f"{_what_there_is(nodes)}. Lower resources.cpus or what runs beside the trials, run it before or after them, or "
        "start more nodes"
    )


def _notes(room: _Room, at_once: int, trials: int, nodes: Sequence[Node]) -> Iterable[str]:
    if trials > at_once:
        yield f"{trials} trials take turns, {at_once} at once"
    touched = Counter(
        node.name for node, left in zip(nodes, room.left, strict=True) if node.starts and left != dict(node.total)
    )
    for name, count in touched.items():
        yield f"up to {count} of {name} will be started"
    cpus = sum(left.get("CPU", 0) for node, left in zip(nodes, room.left, strict=True) if not node.starts)
    if cpus < 1:
        yield (
            "no processor is left beside the trials: a pipeline of Ray Data, such as data import, waits until one ends; "
            "trials themselves read what was decoded before them"
        )


def _largest(needs: Sequence[Need]) -> Need:
    names = {name for need in needs for name in need.asked if not name.startswith(ACCELERATOR)}
    most = {name: max(need.resources.get(name, 0) for need in needs) for name in names}
    return Need("the largest trial", most, needs[0].workers)


def _fits(asked: Mapping[str, float], left: Mapping[str, float]) -> bool:
    return all(left.get(name, 0) >= amount - 1e-9 for name, amount in asked.items())


def _slots(asked: Mapping[str, float], total: Mapping[str, float]) -> int:
    if not _fits(asked, total):
        return 0
    return min(
        int((total[name] + 1e-9) // amount) for name, amount in asked.items() if not name.startswith(ACCELERATOR)
    )


def _amounts(asked: Mapping[str, float]) -> str:
    return " and ".join(
        f"a {_kind(name)}" if name.startswith(ACCELERATOR) else f"{amount:g} {name}" for name, amount in asked.items()
    )


def _asks(need: Need) -> str:
    times = f"{need.workers} times " if need.workers > 1 else ""
    return f"{need.what} asks for {times}{_amounts(need.asked)}"


def _kind(name: str) -> str:
    return f"GPU of type {name.removeprefix(ACCELERATOR)}"


def _kinds(nodes: Sequence[Node]) -> str:
    kinds = sorted(
        {name.removeprefix(ACCELERATOR) for node in nodes for name in node.total if name.startswith(ACCELERATOR)}
    )
    return f"there are {', '.join(kinds)}" if kinds else "there are none of any type"


def _what_there_is(nodes: Sequence[Node]) -> str:
    shapes = Counter(
        (node.name, f"{node.total.get('CPU', 0):g} CPU and {node.total.get('GPU', 0):g} GPU") for node in nodes
    )
    return "there are " + ", ".join(f"{count} × {name} with {has}" for (name, has), count in shapes.items())
