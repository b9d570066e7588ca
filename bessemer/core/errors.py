"""What goes wrong because of what we were given, said so that it can be mended."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class BessemerError(Exception):
    """A mistake in a recipe, a file or a command; the command line prints it and exits with status 2.

    Args:
        problem: what is wrong, in one sentence, with the offending value in it.
        file: the file the mistake is in, if there is one.
        key: the dotted recipe key, the column, the tensor's name: the place inside the file.
        mend: what most likely puts it right.
    """

    def __init__(self, problem: str, *, file: str | Path | None = None, key: str | None = None, mend: str | None = None) -> None:
        self.problem, self.file, self.key, self.mend = problem, file, key, mend
        super().__init__(self.describe())

    def describe(self) -> str:
        where = ": ".join(str(part) for part in (self.file, self.key) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        return f"{text}\n  mend: {self.mend}" if self.mend else text

    def __reduce__(self):  # survives the trip out of a worker process
        return _rebuild, (type(self), self.problem, self.file, self.key, self.mend)


class RecipeError(BessemerError):
    """The recipe, or an override of it, can't be followed."""


class DataError(BessemerError):
    """A source, corpus, tokenizer or token store can't be read or is not what it says."""


class ArtifactError(BessemerError):
    """An artifact, checkpoint or exported model is missing, torn, altered or of another kind."""


class TrainingError(BessemerError):
    """Training can't go on, for instance because the loss stays non-finite."""


def neighbours(name: str, known: Iterable[str]) -> str | None:
    """A sentence that suggests the known names nearest to `name`, or lists them when they are few."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if known and len(known) <= 24:
        return "there is " + ", ".join(known)
    return None


def _rebuild(kind, problem, file, key, mend):
    return kind(problem, file=file, key=key, mend=mend)
