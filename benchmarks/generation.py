"""How fast a model writes: ours against transformers' `generate` on the same weights, exported and loaded as any user would.

A depth-4, width-256 decoder (vocabulary 8,192, float32) continues prompts of 32 tokens. Ours and transformers take turns; figures are
medians of new tokens a second, prompt included. Greedy texts are compared token by token first.

    python benchmarks/generation.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from results import finish
from transformers import AutoModelForCausalLM

from bessemer.core.artifact import seal
from bessemer.data.byte_level import characters
from bessemer.data.tokenizer import Tokenizer, write_tokenizer
from bessemer.models.families.decoder import Decoder
from bessemer.models.hugging_face import package_to
from bessemer.models.package import Model, save_model
from bessemer.serve.generate import generate

VOCABULARY, PROMPT = 8192, 32
TARGETS = {"single_tokens_per_second": 100.0, "against_transformers": 1.0}
WAYS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "top_k": 50, "top_p": 0.95}}


def build(place: Path) -> tuple[torch.nn.Module, Tokenizer, Any]:
    """Our model, its tokenizer, and the same model in transformers."""
    letters = characters()
    pairs = [a + b for a in letters for b in letters][: VOCABULARY - 257]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={t: i for i, t in enumerate([*letters, *pairs])}, merges=[]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    write_tokenizer(place / "tokenizer", backend, {"end": VOCABULARY - 1, "begin": VOCABULARY - 1, "pad": VOCABULARY - 1, "fast": False})
    tokenizer = Tokenizer.load(place / "tokenizer")
    model = Decoder(VOCABULARY, 1, depth=4, width=256, length=2048)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # varied texts that never end
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model.head.weight[VOCABULARY - 1] = 0
    seal(place / "model", "model", recipe={}, parents={}, info=save_model(model, place / "model", tokenizer=tokenizer))
    (place / "export").mkdir()
    package_to(Model.open(place / "model"), place / "export")
    return model.eval(), tokenizer, AutoModelForCausalLM.from_pretrained(place / "export", dtype=torch.float32).eval()


def ours(model: torch.nn.Module, tokenizer: Tokenizer, prompts: torch.Tensor, count: int, way: dict[str, Any]) -> list[list[int]]:
    return [each.tokens for each in generate(model, tokenizer, prompts.tolist(), max_tokens=count, rows=len(prompts), **way)]


def theirs(model: Any, prompts: torch.Tensor, count: int, way: dict[str, Any]) -> list[list[int]]:
    settings = {"do_sample": False} if way["temperature"] == 0 else {"do_sample": True, **way}
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count, pad_token_id=0, **settings)
    return found[:, prompts.shape[1] :].tolist()


def rate(write: Callable[[], list[list[int]]]) -> float:
    start = time.perf_counter()
    tokens = sum(map(len, write()))
    return tokens / (time.perf_counter() - start)


def measure(place: Path, sizes: list[int], count: int, rounds: int) -> dict[str, Any]:
    model, tokenizer, other = build(place)
    figures: dict[str, Any] = {}
    for rows in sizes:
        prompts = torch.randint(0, VOCABULARY - 1, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
        mine, yours = ours(model, tokenizer, prompts, 64, WAYS["greedy"]), theirs(other, prompts, 64, WAYS["greedy"])
        for name, way in WAYS.items():
            found: dict[str, list[float]] = {"ours": [], "transformers": []}
            for _ in range(rounds):
                found["ours"].append(rate(lambda p=prompts, w=way: ours(model, tokenizer, p, count, w)))
                found["transformers"].append(rate(lambda p=prompts, w=way: theirs(other, p, count, w)))
            row = {key: round(statistics.median(values), 1) for key, values in found.items()}
            row["ratio"] = round(statistics.median(a / b for a, b in zip(*found.values(), strict=True)), 2)
            figures[f"{rows} x {name}"] = row | {"greedy_equal": mine == yours}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 and 8 rows, fewer tokens, three rounds")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = measure(Path(place), [1, 8] if chosen.quick else [1, 8, 32], 64 if chosen.quick else 128, 3 if chosen.quick else 5)
    print(f"{'rows x way':<16}{'ours':>10}{'transformers':>14}{'ratio':>8}  greedy equal")
    for name, row in figures.items():
        print(f"{name:<16}{row['ours']:>10.0f}{row['transformers']:>14.0f}{row['ratio']:>8.2f}  {row['greedy_equal']}")
    single = [row["ours"] for name, row in figures.items() if name.startswith("1 x")]
    fast = min(single) >= TARGETS["single_tokens_per_second"] and min(row["ratio"] for row in figures.values()) >= TARGETS["against_transformers"]
    finish("generation", figures, TARGETS, fast and all(row["greedy_equal"] for row in figures.values()), chosen.quick)


if __name__ == "__main__":
    main()
