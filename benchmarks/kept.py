"""Figures kept on disk while a long benchmark runs, so that one that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """What was measured so far, by name.

    Args:
        folder: where; None: nothing is kept.
        about: what it was measured with; figures of anything else are not used.
    """

    def __init__(self, folder: Path | None, about: Any) -> None:
        self.file, self.about = None if folder is None else folder / "kept.json", json.dumps(about, sort_keys=True)
        self.found: dict[str, Any] = {}
        if self.file is not None and self.file.is_file():
            held = json.loads(self.file.read_text())
            self.found = held["found"] if held["about"] == self.about else {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figures of that name, measured if they aren't there."""
        if name not in self.found:
            self.found[name] = measure()
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.write_text(json.dumps({"about": self.about, "found": self.found}))
        return self.found[name]
