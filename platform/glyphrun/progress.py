"""What a long job shows while it runs: a bar for each stage at a terminal, a line for each elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """The stages of a long job, one bar each."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self.console = progress, console

    @contextmanager
    def stage(self, name: str, total: int, skip: bool = False) -> Iterator[Stage]:
        """skip: it was done by an earlier run. Off a terminal, each stage is one line when it ends."""
        note = "done before" if skip else ""
        task = self.progress.add_task(f"[bold]{name}", total=total, completed=total if skip else 0, note=note)
        stage = Stage(self.progress, task)
        yield stage
        self.progress.update(task, completed=total, total=total)
        if not self.console.is_terminal:
            seconds = self.progress.tasks[task].elapsed or 0.0
            self.console.print(f"{name}: {self.progress.tasks[task].fields['note'] or 'done'} ({seconds:.1f} s)")


@dataclass(frozen=True)
class Stage:
    """The bar of the stage that runs."""

    progress: Progress
    task: TaskID

    def advance_to(self, done: int, note: str | None = None) -> None:
        """done: of the stage's total; note: what to say beside the bar."""
        self.progress.update(self.task, completed=done)
        if note is not None:
            self.progress.update(self.task, note=note)


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
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Stages(progress, console)
