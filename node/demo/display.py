"""What a person sees: a live line on a terminal, a plain line every two seconds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

_TERMINAL_EVERY_S = 0.2
_PLAIN_EVERY_S = 2.0
_CHECKS = {None: "", True: "[green]ok[/]", False: "[red]WRONG[/]"}


@dataclass(frozen=True, slots=True)
class Figures:
    published: int
    acknowledged: int
    read: int
    records_per_s: float
    phase: str


class Display:
    """`every_s`: how often to call `show`."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._is_terminal = console.is_terminal
        self.every_s = _TERMINAL_EVERY_S if self._is_terminal else _PLAIN_EVERY_S
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._bars = {
            name: self._progress.add_task(name, total=total, note="")
            for name in ("published", "acknowledged", "read")
        }
        self._live = Live(self._progress, console=console, refresh_per_second=8)

    def __enter__(self) -> Display:
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, figures: Figures) -> None:
        if not self._is_terminal:
            self.say(
                f"  published {figures.published:,}  acknowledged {figures.acknowledged:,}"
                f"  read {figures.read:,} of {self._total:,}"
                f"  {figures.records_per_s:,.0f} records/s  {figures.phase}"
            )
            return
        self._progress.update(self._bars["published"], completed=figures.published)
        self._progress.update(
            self._bars["acknowledged"],
            completed=figures.acknowledged,
            note=f"{figures.records_per_s:,.0f} records/s",
        )
        self._progress.update(self._bars["read"], completed=figures.read, note=figures.phase)


def result_table(rows: list[tuple[str, str, bool | None]]) -> Table:
    """Rows of (what, value, is it as it must be; None = a figure without a must)."""
    table = Table(title="quorumq demo", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("check")
    for what, value, good in rows:
        table.add_row(what, value, _CHECKS[good])
    return table
