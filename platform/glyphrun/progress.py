"""What a long job shows while it runs: a bar for each stage at a terminal, a line for each elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class StageProgress(Progress):
    """Bars with something of the running stage below them."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and what is below them."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


class Stages:
    """The stages of a long job, one bar each."""

    def __init__(self, progress: StageProgress, console: Console) -> None:
        self.progress, self.console = progress, console

    @contextmanager
    def stage(self, name: str, total: int, skip: bool = False) -> Iterator[Stage]:
        """skip: it was done by an earlier run. Off a terminal, each stage is one line when it ends."""
        note = "done before" if skip else ""
        task = self.progress.add_task(f"[bold]{name}", total=total, completed=total if skip else 0, note=note)
        stage = Stage(self.progress, task)
        yield stage
        self.progress.below = None
        self.progress.update(task, completed=total, total=total)
        if not self.console.is_terminal:
            seconds = self.progress.tasks[task].elapsed or 0.0
            self.console.print(f"{name}: {self.progress.tasks[task].fields['note'] or 'done'} ({seconds:.1f} s)")


@dataclass(frozen=True)
class Stage:
    """The bar of the stage that runs."""

    progress: StageProgress
    task: TaskID

    def advance_to(self, done: int, note: str | None = None) -> None:
        """done: of the stage's total; note: what to say beside the bar."""
        self.progress.update(self.task, completed=done)
        if note is not None:
            self.progress.update(self.task, note=note)

    def show(self, below: RenderableType) -> None:
        """What to show below the bars until the stage ends; off a terminal nothing is."""
        self.progress.below = below


@contextmanager
def show_stages(console: Console) -> Iterator[Stages]:
    """Bars at a terminal, plain lines elsewhere."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with StageProgress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Stages(progress, console)
