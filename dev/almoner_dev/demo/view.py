"""The demo, live: a table that follows the work on a terminal, and lines about what changed everywhere else.

Role: one Picture after the other onto the screen. Boundary: only shows.
"""

from __future__ import annotations

from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from almoner_core.api.execution import ExecutionPhase
from almoner_dev.demo.observe import Picture, Quota, Work

WAITING: Final = (ExecutionPhase.PENDING, ExecutionPhase.QUEUED)
RUNNING: Final = (ExecutionPhase.ADMITTED, ExecutionPhase.RUNNING)
_STYLES: Final = {
    ExecutionPhase.ADMITTED: "cyan",
    ExecutionPhase.RUNNING: "bold cyan",
    ExecutionPhase.SUCCEEDED: "green",
    ExecutionPhase.FAILED: "yellow",
    ExecutionPhase.CANCELLED: "magenta",
}


class View(Protocol):
    """What follows the work."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, picture: Picture, seconds: float) -> None:
        """Show the work as it stands, so many seconds after it was applied."""


def choose(console: Console) -> View:
    """Give the view that fits where the console writes to."""
    return Table_(console) if console.is_terminal else Lines(console)


def summary(picture: Picture) -> str:
    """Give one line on everything."""
    return (
        f"{picture.count(*WAITING)} queued, {picture.count(*RUNNING)} running, "
        f"{picture.count(ExecutionPhase.SUCCEEDED)} done, "
        f"{picture.count(ExecutionPhase.FAILED, ExecutionPhase.CANCELLED)} refused or failed, "
        f"${picture.spent} spent"
    )


def fold(text: str, chars_max: int) -> str:
    """Give a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def progress_words(item: Work) -> str:
    """Give how far a job is: `step 120 of 200, accuracy 0.91, loss 0.2`."""
    progress = item.progress
    if progress is None or not progress.step:
        return ""
    words = [f"step {progress.step}" + (f" of {progress.total}" if progress.total else "")]
    metrics = getattr(item.status, "metrics", [])
    return ", ".join(words + [f"{metric.name} {metric.value}" for metric in metrics])


class Lines:
    """One line for whatever changed: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phases: dict[str, ExecutionPhase] = {}
        self._steps: dict[str, int] = {}
        self._summary = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, picture: Picture, seconds: float) -> None:
        """Print what changed since the last picture, and the summary where that changed."""
        lines = [line for item in picture.work if (line := self._changed(item))]
        if (now := summary(picture)) != self._summary:
            self._summary = now
            lines.append(now)
        for line in lines:
            self._print(f"  {seconds:5.1f} s  {line}")

    def _changed(self, item: Work) -> str | None:
        before = self._phases.get(item.uid)
        if item.phase is not before:
            self._phases[item.uid] = item.phase
            if before is None and item.phase in WAITING:
                return None  # everything begins so
            note = f" ({fold(item.note, 80)})" if item.note and item.phase in {*WAITING, ExecutionPhase.FAILED} else ""
            return f"{item.name}: {item.phase}{note}"
        step = item.progress.step if item.progress else 0
        if not item.done and step != self._steps.get(item.uid, 0):
            self._steps[item.uid] = step
            return f"{item.name}: {progress_words(item)}"
        return None

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Table_:  # noqa: N801 - Table is rich's
    """A table that is drawn again and again."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, picture: Picture, seconds: float) -> None:
        """Draw the picture."""
        self._live.update(Group(_work_table(picture), *_footer(picture, seconds)))


def _work_table(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for name, ratio in (("name", 0), ("agent", 0), ("owner", 0)):
        table.add_column(name, no_wrap=True, ratio=ratio or None)
    table.add_column("pri", justify="right")
    table.add_column("phase", no_wrap=True)
    table.add_column("cost $", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, ratio=1, overflow="ellipsis")
    for item in picture.work:
        note = progress_words(item) if item.progress and not item.done else item.note
        table.add_row(
            item.name,
            item.agent,
            item.owner,
            str(item.priority),
            Text(item.phase, style=_STYLES.get(item.phase, "dim")),
            str(item.cost) if item.cost else "",
            Text(fold(note, 160), style="dim"),
        )
    return table


def _footer(picture: Picture, seconds: float) -> list[Text]:
    quotas = "; ".join(words for quota in picture.quotas if (words := quota_words(quota)))
    return [Text(""), Text(f"{seconds:5.1f} s  {summary(picture)}", style="bold"), Text(quotas, style="dim")]


def quota_words(quota: Quota) -> str:
    """Give a quota on one line: `team-red: executions 2 of 2, budget 0.003 of 1.00`."""
    limits = ", ".join(f"{limit.name} {limit.used} of {limit.limit}" for limit in quota.limits)
    return f"{quota.name}: {limits}" if limits else ""
