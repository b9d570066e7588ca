"""An example store of scenes and what examples need, for the tests of objectives."""

from __future__ import annotations

from functools import cache

from bessemer.core.registry import choose
from bessemer.data.example_loader import ExampleLoader
from bessemer.data.example_store import Examples, ExampleWriter
from bessemer.data.examples.scenes import scenes
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from tests.folders import folder
from tests.unit.objectives.words import SIZE, Words

PATCHES = {"name": "patches", "size": 8}
GROUPED = ("clip", "filip", "m3i", "lejepa")


class Captions(Words):
    """A tokenizer that gives every word of a caption an id."""

    begin, end, pad = 0, 1, 2

    def encode(self, text: str) -> list[int]:
        return [3 + sum(map(ord, word)) % 37 for word in text.split()]


@cache
def store(count: int = 240, **options) -> Examples:
    """Scenes, a tenth of them held out."""
    writer = ExampleWriter(folder(), 32, 0)
    list(writer.add_all(scenes(count=count, **options)))
    writer.close(0.1)
    return Examples(writer.folder, {"kind": "examples", "hash": "", "info": {}})


def decoder(seed: int = 1, **options) -> Decoder:
    return Decoder(SIZE, seed, **({"depth": 2, "width": 32, "heads": 2, "ffn": 64} | options))


def made(name: str, model: Decoder | None = None, task: str = "mine", **options):
    """An objective of examples attached to a model."""
    grouped = {"group": 4} if name in GROUPED else {}
    return attach(model or decoder(), task, choose("objectives", {"name": name, **grouped, **options}), choose("models/adapters", PATCHES))


def loader(objective, task: str = "mine", length: int = 96, **options) -> ExampleLoader:
    per_row = length // objective.columns
    return ExampleLoader(store(), Captions(), modality="picture", per_row=per_row, length=length, words=objective.words, task=task, **options)
