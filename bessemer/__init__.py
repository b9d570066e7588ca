"""From raw text to a trained, evaluated, exported and served model: every published training method one small file.

From Python:

    import bessemer

    run = bessemer.run("demo", **{"train.model.depth": 8})   # all stages of a recipe; the same call resumes
    model = bessemer.load("runs/demo")                       # a run's or a model's folder, ours or Hugging Face's
    bessemer.methods("optim")                                # what there is, from the sources' docstrings
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bessemer.core.registry import Entry

__all__ = ["load", "methods", "run"]


def load(folder: str | Path) -> Any:
    """The model in a folder: a run's, a model's of ours, or a Hugging Face one. `model(tokens)` gives logits.

    Raises:
        bessemer.core.errors.ArtifactError: there is no model in it, or it is torn or altered.
    """
    from bessemer.models import package

    return package.load(folder)


def methods(kind: str | None = None) -> list[Entry]:
    """Every method there is, or those of one kind, read from the sources without importing them."""
    from bessemer.run import catalogue

    return catalogue.listed(kind)


def __getattr__(name: str) -> Any:
    if name == "run":  # the room of that name, which can be called
        return importlib.import_module("bessemer.run")
    raise AttributeError(f"module 'bessemer' has no attribute '{name}'")
