"""How every benchmark ends: one JSON line, and the same beside it on disk with date and machine."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def finish(name: str, figures: dict[str, Any], targets: dict[str, Any], holds: bool, quick: bool, methods: dict[str, Any] | None = None) -> None:
    """Prints the last line and, unless it was a quick run, keeps it in results/NAME.json.

    Args:
        methods: method name -> {figure: value}, which `bessemer methods` shows beside it.
    """
    result: dict[str, Any] = {"name": name, "figures": figures, "targets": targets, "holds": bool(holds)}
    result |= {"command": " ".join(["python", *sys.argv]), "machine": machine()}
    if methods:
        result["methods"] = methods
    if not quick:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(result | {"date": time.strftime("%Y-%m-%d")}, indent=1) + "\n")
    print(json.dumps(result))


def machine() -> str:
    """The processor, its cores and how busy it is."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
