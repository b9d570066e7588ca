"""Where a run's figures go: a file of JSON lines, TensorBoard, and whoever else listens."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.core import files


class Metrics:
    """An append-only `metrics.jsonl` and a TensorBoard file beside it; lines after a step are cut off on resuming.

    Attributes:
        listeners: called with the numbers of each line by name ("terms/next_token") and its step.

    Args:
        folder: where they go.
        silent: write nothing: every rank of a run keeps figures, and the first writes them.
    """

    def __init__(self, folder: Path, silent: bool = False) -> None:
        self.silent = silent
        self.file = folder / "metrics.jsonl"
        self.folder = folder
        self._out: Any = None
        self._board: Any = None
        self._waiting: list[tuple[dict[str, float], int, float]] = []
        self.listeners: list[Callable[[dict[str, float], int], None]] = []

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`: those steps are about to be taken again."""
        if self.file.exists() and not self.silent:
            kept = [text for text in self.file.read_text().splitlines() if (line := _parse(text)) is not None and line.get("step", 0) <= step]
            files.write(self.file, "".join(text + "\n" for text in kept))

    def write(self, line: dict[str, Any]) -> None:
        if self.silent:
            return
        if self._out is None:
            self._out = open(self.file, "a", buffering=1)  # noqa: SIM115 - held for the whole run
        self._out.write(json.dumps(_finite(line)) + "\n")
        flat, step = dict(_flat(line)), int(line["step"])
        first = self._board is None and not self._waiting
        self._waiting.append((flat, step, time.time()))
        if not first:  # TensorBoard takes a second to import, for which a process's first step needn't wait
            self._show()
        for hear in self.listeners:
            hear(flat, step)

    def _show(self) -> None:
        """Gives TensorBoard what it has not been given yet."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._waiting[0][1])
        for flat, step, when in self._waiting:
            for name, value in flat.items():
                self._board.add_scalar(name, value, step, when)
        self._waiting.clear()

    def close(self) -> None:
        if self._waiting:
            self._show()
        for each in (self._out, self._board):
            if each is not None:
                each.close()


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # the line a kill cut short
        return None


def _flat(line: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "tokens"):
            found.append((prefix + name, value))
    return found
