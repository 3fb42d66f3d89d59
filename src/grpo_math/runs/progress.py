"""The progress of long work: bars on a terminal, a line now and then elsewhere. Only the first process shows it."""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from grpo_math.recipe.batch import is_main_process

EVERY = 10  # seconds between two lines where there is no terminal
WIDTH = 80  # columns of a line there
WINDOW = 20  # updates over which the pace is measured

logger = logging.getLogger(__name__)


class Terminal(Console):
    """Its cursor is never hidden: no way of dying, not even SIGKILL, leaves it so."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Times(ProgressColumn):
    """The time elapsed, and the time left, which runs down between two updates."""

    def render(self, task: Task) -> Text:
        end, elapsed = task.fields["end"], clock(task.elapsed or 0)
        left = "" if end is None else f"  {clock(max(0.0, end - time.monotonic()))} left"
        return Text(f"{elapsed} elapsed{left}", no_wrap=True)


class Board(Progress):
    """All bars of this process, and below them a line of text each that has one."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (task.fields["note"] for task in self.tasks if task.fields["note"])


boards: list[Board] = []  # one, while there are bars


def on_terminal() -> bool:
    return sys.stdout.isatty() and Terminal().is_interactive


class Bar:
    """As a context: work of `total` units (None: unknown), of which `done` are done already.

    Where there is no terminal, and the unit has a name, `update` logs a line every ten seconds. A bar that `stays` is
    left on the terminal at the end. `apart` are the seconds until now that belong to no unit.
    """

    def __init__(
        self, name: str, total: int | None, unit: str = "", done: int = 0, stays: bool = False, apart: float = 0.0
    ):
        self.name, self.total, self.unit, self.stays = name, total, unit, stays
        self.done: float = done
        self.more, self.reported = 0.0, time.monotonic()
        self.marks: deque[tuple[float, float]] = deque([(self.reported - apart, done)], maxlen=WINDOW + 1)
        self.board: Board | None = None

    def __enter__(self) -> "Bar":
        if is_main_process() and on_terminal():
            name = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            columns = name, BarColumn(bar_width=12), TaskProgressColumn(), Times()
            if not boards:
                stderr = sys.stderr.isatty()
                boards.append(Board(*columns, console=Terminal(), refresh_per_second=2, redirect_stderr=stderr))
                boards[0].start()
            self.board = boards[0]
            self.task = self.board.add_task(self.name, total=self.total, completed=int(self.done), end=None, note=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self.board and len(self.board.tasks) > 1:
            self.board.remove_task(self.task)
        elif self.board:
            self.board.live.transient = not self.stays
            self.board.stop()
            boards.clear()
        self.board = None

    def update(self, done: float, note: Text | None = None, apart: float = 0.0, more: float = 0.0) -> None:
        """So many units are done; `more` are the seconds ahead that belong to no unit."""
        now, self.done, self.more = time.monotonic(), done, more
        self.marks.append((now - apart, done))
        if self.board:
            end = None if self.left is None else now + self.left
            self.board.update(
                self.task, description=self.name, total=self.total, completed=done, end=end, note=note, refresh=True
            )
        elif self.unit and done != self.total and is_main_process() and now > self.reported + EVERY:
            self.reported = now
            left = "" if self.left is None else f", {clock(self.left)} left"
            logger.info("%s: %s of %s %s%s", self.name, f"{done:,}", f"{self.total:,}", self.unit, left)

    @property
    def pace(self) -> float | None:
        """The seconds per unit over the last updates."""
        (begin, first), (end, last) = self.marks[0], self.marks[-1]
        return (end - begin) / (last - first) if last > first else None

    @property
    def left(self) -> float | None:
        """In seconds."""
        return None if self.pace is None or self.total is None else self.pace * (self.total - self.done) + self.more


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Work whose length is unknown: a bar on a terminal, a line elsewhere."""
    with Bar(name, None) as bar:
        logger.log(logging.DEBUG if bar.board else logging.INFO, "%s ...", name)
        yield


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
