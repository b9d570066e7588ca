"""What the text objectives are trained on, and how."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from objective_texts import copies, few, keys, text

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
        """The folder of a store's run: "text", "few" (in text's tokens), "keys" or "copies"."""
        place = self.folder / name
        if (place / "run" / "tokenize" / "manifest.json").is_file():
            self.made[name] = place / "run"
        if name not in self.made:
            share = 0.1 if self.quick else 1.0
            made = {"text": partial(text, share), "few": partial(few, share)}
            made |= {"keys": partial(keys, int(12000 * share)), "copies": partial(copies, int(12000 * share))}
            write_corpus(place / "corpus", made[name]())
            inputs = {"corpus": str(place / "corpus")}
            known = {"tokenizer": str(self.store("text") / "train_tokenizer")} if name == "few" else {}
            stages: list[dict[str, Any]] = [{"do": "tokenize", "inputs": inputs | known, "held_out": 0.5 if name == "few" else 0.1, "processes": 1}]
            if not known:
                learn = {"vocabulary": VOCABULARY[name], "reserve": RESERVE[name], "megabytes": 0.5}
                stages.insert(0, {"do": "train_tokenizer", "inputs": inputs} | learn)
            bessemer.run({"name": name, "stage": stages}, out=place / "run", quiet=True)
            self.made[name] = place / "run"
        return self.made[name]

    def tokens(self, name: str = "text") -> Tokens:
        return Tokens.open(self.store(name) / "tokenize", verify=False)

    def tokenizer(self, name: str = "text") -> Tokenizer:
        return Tokenizer.open(self._tokenizer(name), verify=False)

    def _tokenizer(self, name: str) -> Path:
        return self.store("text" if name == "few" else name) / "train_tokenizer"

    def train(self, task: dict[str, Any], seed: int, *, name: str = "text", steps: int | None = None, **options: Any) -> Any:
        """A model trained on one task for `steps`, in evaluation mode; the same one when it is asked for again."""
        asked = json.dumps([task, seed, name, steps, options], sort_keys=True, default=str)
        if asked not in self.trained:
            self.trained[asked] = self._train(task, seed, name, steps, dict(options))
        return self.trained[asked]

    def _train(self, task: dict[str, Any], seed: int, name: str, steps: int | None, options: dict[str, Any]) -> Any:
        inputs = {"tokens": str(self.store(name) / "tokenize"), "tokenizer": str(self._tokenizer(name))}
        inputs |= {key: str(options.pop(key)) for key in ("logits", "start") if key in options}
        stage = {"do": "train", "name": "train", "inputs": inputs, "task": [task]}
        stage |= {"length": LENGTH, "batch": ROWS, "micro_batch": ROWS, "steps": steps or self.steps}
        stage |= {} if "start" in inputs else {"model": MODEL}
        stage |= {"guard": "watch", "compile": False, "precision": "float32", "hooks": []} | options
        out = Path(tempfile.mkdtemp(dir=self.folder))
        bessemer.run({"name": "objectives", "seed": seed, "stage": [stage]}, out=out, quiet=True)
        model = bessemer.load(out / "train")
        model.folder = out / "train"
        return model.eval()
