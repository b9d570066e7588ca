"""Watching a run: a live display on a terminal, a plain line now and then elsewhere, and always a log file."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

LOG = "log.txt"
EVERY = 10.0
"""Seconds between the lines of a stage where there is no terminal."""


class Watch:
    """Hears what a run does; this one keeps quiet. Displays subclass it."""

    def begin(self, stage: str) -> None:
        """A stage begins, or goes on after a stop."""

    def reuse(self, stage: str) -> None:
        """A stage's artifact is there from an earlier run and still right."""

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        """The stage is `done` of `total` far."""

    def note(self, stage: str, text: str) -> None:
        """The stage has something to say."""

    def end(self, stage: str, seconds: float) -> None:
        """The stage is done."""

    def close(self) -> None:
        """Nothing more will come."""


class Both(Watch):
    """Passes everything on to several watches."""

    def __init__(self, *watches: Watch) -> None:
        self.watches = watches

    def begin(self, stage: str) -> None:
        for watch in self.watches:
            watch.begin(stage)

    def reuse(self, stage: str) -> None:
        for watch in self.watches:
            watch.reuse(stage)

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        for watch in self.watches:
            watch.progress(stage, done, total, unit, figures)

    def note(self, stage: str, text: str) -> None:
        for watch in self.watches:
            watch.note(stage, text)

    def end(self, stage: str, seconds: float) -> None:
        for watch in self.watches:
            watch.end(stage, seconds)

    def close(self) -> None:
        for watch in self.watches:
            watch.close()


class Pace:
    """The rate of one stage over the last seconds, whatever had been done before it was watched."""

    def __init__(self, window: float = 15.0) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self._window = window

    def see(self, done: float, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # a new phase counts from the beginning
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._window:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second, or None while too little is known."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])

    def left(self, done: float, total: float | None) -> float | None:
        """Seconds left."""
        return (total - done) / self.rate if total is not None and self.rate else None


class Lines(Watch):
    """One plain line every few seconds."""

    def __init__(self, say: Callable[[str], None], every: float = EVERY) -> None:
        self._say, self._every = say, every
        self._paces: dict[str, Pace] = {}
        self._last = time.monotonic()

    def begin(self, stage: str) -> None:
        self._paces[stage] = Pace()
        self._last = time.monotonic()
        self._say(f"{stage}: begins")

    def reuse(self, stage: str) -> None:
        self._say(f"{stage}: unchanged, kept")

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        pace = self._paces.setdefault(stage, Pace())
        pace.see(done)
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._say(f"{stage}: {describe(done, total, unit, pace, figures)}")

    def note(self, stage: str, text: str) -> None:
        self._say(f"{stage}: {text}")

    def end(self, stage: str, seconds: float) -> None:
        self._say(f"{stage}: done in {duration(seconds)}")


class Live(Watch):
    """A line for each stage with a bar, kept up to date in place."""

    def __init__(self, stages: list[str], stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        width = max(map(len, stages), default=0)
        columns = (
            TextColumn("{task.fields[mark]} {task.description:" + str(width) + "}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
        )
        self._bars = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self._tasks = {stage: self._bars.add_task(stage, total=1.0, mark="[dim]·[/]", text="") for stage in stages}
        self._paces = {stage: Pace() for stage in stages}

    def begin(self, stage: str) -> None:
        self._bars.start()  # not before there is work, so that an error in the recipe stands alone
        self._bars.update(self._tasks[stage], mark="[yellow]▸[/]", total=None)

    def reuse(self, stage: str) -> None:
        self._bars.start()
        self._bars.update(self._tasks[stage], mark="[green]✓[/]", total=1.0, completed=1.0, text="[dim]unchanged, kept[/]")

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        pace = self._paces[stage]
        pace.see(done)
        text = describe(done, total, unit, pace, figures).replace("[", r"\[")
        self._bars.update(self._tasks[stage], total=total, completed=done, text=text)

    def note(self, stage: str, text: str) -> None:
        self._bars.console.print(f"{stage}: {text}", markup=False, highlight=False)

    def end(self, stage: str, seconds: float) -> None:
        self._bars.update(self._tasks[stage], mark="[green]✓[/]", total=1.0, completed=1.0, text=f"[dim]{duration(seconds)}[/]")

    def close(self) -> None:
        self._bars.stop()


class Log(Lines):
    """The same lines with the time of day, added to the run folder's log file."""

    def __init__(self, file: Path, every: float = EVERY) -> None:
        self._file = open(file, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed in close()
        super().__init__(self._write, every)
        self._write(f"--- {' '.join(sys.argv)}")

    def _write(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        self._file.close()


def watch_for(stages: list[str], quiet: bool) -> Watch:
    """The display that suits where stderr goes."""
    if quiet:
        return Watch()
    if sys.stderr.isatty():
        return Live(stages, sys.stderr)
    return Lines(to_stderr)


def to_stderr(text: str) -> None:
    """Where lines go: stdout is kept for the answer."""
    print(text, file=sys.stderr, flush=True)


def hush() -> None:
    """Keeps libraries' own chatter below warnings out of the display."""
    for name in ("torch", "matplotlib", "PIL", "ray", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def describe(done: float, total: float | None, unit: str, pace: Pace, figures: dict[str, Any]) -> str:
    """'120/1,000 steps  12.1/s  1m12s left  loss 3.214'."""
    parts = [f"{number(done)}/{number(total)} {unit}" if total is not None else f"{number(done)} {unit}"]
    if pace.rate is not None:
        parts.append(f"{number(pace.rate)}/s")
    left = pace.left(done, total)
    if left is not None and left >= 1:
        parts.append(f"{duration(left)} left")
    parts += [f"{name.replace('_', ' ')} {number(value)}" for name, value in figures.items()]
    return "  ".join(parts)


def number(value: Any) -> str:
    """A figure as people read it: four significant digits, thousands separated, large ones with k, M or G."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if limit != 1e5 else 1e3):.4g}{suffix}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """'0.4s', '12s', '1m12s', '3h05m', '2d04h'."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
