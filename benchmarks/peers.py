"""Peers live in environments of their own, so that comparing with them never changes the project's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".peers"


def peer_python(name: str, packages: list[str]) -> str:
    """The Python of the environment `.peers/NAME`, made with pip at its first use.

    Args:
        name: the environment's.
        packages: what pip installs into it; another list makes it anew.

    Raises:
        RuntimeError: pip failed.
    """
    home = FOLDER / name
    python, done = home / "bin" / "python", home / "packages.txt"
    if not done.is_file() or done.read_text() != "\n".join(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        made = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
        if made.returncode:
            raise RuntimeError(f"the peer {name} can't be installed:\n{made.stderr[-2000:]}")
        done.write_text("\n".join(packages))
    return str(python)
