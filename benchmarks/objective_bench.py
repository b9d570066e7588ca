"""What the text objectives are trained on, and how."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from objective_texts import copies, keys, text

import bessemer
from bessemer.data.corpus import write_corpus
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens

MODEL: dict[str, Any] = {"name": "decoder", "depth": 3, "width": 64, "heads": 2, "ffn": 192}
LARGE = {"width": 128, "heads": 4, "ffn": 384}
LENGTH, ROWS, WINDOW = 128, 8, 4
RESERVE = {"text": ["mask", "modes", "blanks", "units"], "keys": ["mask"], "copies": ["modes", "blanks"]}
VOCABULARY = {"text": 1024, "keys": 259, "copies": 293}
"""Of each store; the last two hold nothing but bytes and special tokens."""


class Bench:
    """Stores made once, and models trained on them."""

    def __init__(self, folder: Path, steps: int, quick: bool) -> None:
        self.folder, self.steps, self.quick = folder, steps, quick
        self.made: dict[str, Path] = {}
        self.trained: dict[str, Any] = {}

    def store(self, name: str) -> Path:
        """The folder of a store's run: "text", "keys" or "copies"."""
        place = self.folder / name
        if (place / "run" / "tokenize" / "manifest.json").is_file():
            self.made[name] = place / "run"
        if name not in self.made:
            share = 0.1 if self.quick else 1.0
            documents = text(share) if name == "text" else {"keys": keys, "copies": copies}[name](int(12000 * share))
            write_corpus(place / "corpus", documents)
            inputs = {"corpus": str(place / "corpus")}
            stages = [
                {"do": "train_tokenizer", "inputs": inputs, "vocabulary": VOCABULARY[name], "reserve": RESERVE[name], "megabytes": 0.5},
                {"do": "tokenize", "inputs": inputs, "held_out": 0.1, "processes": 1},
            ]
            bessemer.run({"name": name, "stage": stages}, out=place / "run", quiet=True)
            self.made[name] = place / "run"
        return self.made[name]

    def tokens(self, name: str = "text") -> Tokens:
        return Tokens.open(self.store(name) / "tokenize", verify=False)

    def tokenizer(self, name: str = "text") -> Tokenizer:
        return Tokenizer.open(self.store(name) / "train_tokenizer", verify=False)

    def train(self, task: dict[str, Any], seed: int, *, name: str = "text", steps: int | None = None, **options: Any) -> Any:
        """A model trained on one task for `steps`, in evaluation mode; the same one when it is asked for again."""
        asked = json.dumps([task, seed, name, steps, options], sort_keys=True, default=str)
        if asked not in self.trained:
            self.trained[asked] = self._train(task, seed, name, steps, dict(options))
        return self.trained[asked]

    def _train(self, task: dict[str, Any], seed: int, name: str, steps: int | None, options: dict[str, Any]) -> Any:
        inputs = {"tokens": str(self.store(name) / "tokenize"), "tokenizer": str(self.store(name) / "train_tokenizer")}
        logits = options.pop("logits", None)
        stage = {"do": "train", "name": "train", "inputs": inputs | ({"logits": str(logits)} if logits else {}), "task": [task]}
        stage |= {"model": MODEL, "length": LENGTH, "batch": ROWS, "micro_batch": ROWS, "steps": steps or self.steps}
        stage |= {"guard": "watch", "compile": False, "precision": "float32", "hooks": []} | options
        out = Path(tempfile.mkdtemp(dir=self.folder))
        bessemer.run({"name": "objectives", "seed": seed, "stage": [stage]}, out=out, quiet=True)
        model = bessemer.load(out / "train")
        model.folder = out / "train"
        return model.eval()
