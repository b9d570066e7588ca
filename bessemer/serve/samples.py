"""Texts a model wrote, kept with how they were made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.serve.row import Generation

FILE = "samples.json"


class Samples(Artifact):
    """`samples.json`: the settings, and for each text its prompt, tokens and why it ended."""

    kind = "samples"

    @property
    def samples(self) -> list[dict[str, Any]]:
        """prompt, text, tokens, finish, prompt_tokens of each."""
        return files.read_json(self.folder / FILE)["samples"]


def write_samples(folder: Path, written: list[Generation], settings: dict[str, Any]) -> None:
    """Writes `samples.json`."""
    samples = [{key: value for key, value in asdict(each).items() if value is not None} for each in written]
    files.write_json(folder / FILE, {"settings": settings, "samples": samples})
