"""Progress on the terminal: what is being done, how far it is, and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Hears what is under way."""

    def __call__(self, text: str, steps: int | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Begin a stage of so many steps (None: not known); its value is called after each step."""
        ...


@contextmanager
def silent(text: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
    """Progress for scripts: says nothing."""
    yield lambda: None


@contextmanager
def on_terminal(text: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar with the time left on the error stream; where that is no terminal, one line when the stage ends."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn()]
    if steps is not None:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(text, total=steps)
        yield lambda: bars.advance(task)
        bars.update(task, total=steps or 1, completed=steps or 1)
    if not console.is_terminal:
        print(text, "done", file=sys.stderr, flush=True)
