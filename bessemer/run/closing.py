"""The last words of a run: what came of it, what to look at, what to try next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bessemer.run.observe import duration
from bessemer.run.runner import Result


def closing(result: Result) -> str:
    """What a person reads when a run is done."""
    made = (
        f"{len(result.made)} of {len(result.artifacts)} stages done, the others were unchanged"
        if len(result.made) < len(result.artifacts)
        else "all stages done"
    )
    lines = [f"{made} in {duration(result.seconds)}; everything is in {result.folder}", ""]
    kinds = {artifact.manifest["kind"]: artifact for artifact in result.artifacts.values()}
    if "report" in kinds:
        lines.append(f"look at    {kinds['report'].folder / 'report.html'}")
    if "model" in kinds:
        lines.append(f"write      {command()} generate {result.folder} --prompt 'def '")
        lines.append(f"compare    {command()} compare {result.folder / 'recipe.toml'} --vary model.depth=4,8 --budget seconds=60")
    return "\n".join(lines).rstrip()


def command() -> str:
    """What starts this program from here: its name where the shell finds it, else the path it was started by."""
    started = Path(sys.argv[0])
    if shutil.which("bessemer") or started.name != "bessemer":
        return "bessemer"
    return str(started)
