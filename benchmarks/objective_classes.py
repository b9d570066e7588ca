"""Lexical classes of Python's tokens: what a tuned model tells apart, the downstream task of ELECTRA and masked language."""

from __future__ import annotations

import copy
import io
import keyword
import tokenize
from typing import Any

import numpy as np
import torch
from objective_bench import LENGTH, Bench
from torch.nn import functional as F

from bessemer.core.batch import Batch

RATES = (5e-4, 2e-3, 5e-3)
"""Learning rates of which each model takes its best: at the first alone, trained models do worse than an untrained one."""


def labels(source: str) -> np.ndarray[Any, Any]:
    """The lexical class of each byte of a Python source; 0 is white space."""
    lines, found = source.splitlines(keepends=True), np.zeros(len(source.encode()), dtype=np.int64)
    starts = np.cumsum([0] + [len(line.encode()) for line in lines])
    kinds = {tokenize.STRING: 3, tokenize.COMMENT: 4, tokenize.NUMBER: 5, tokenize.OP: 6}
    for each in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = (1 if keyword.iskeyword(each.string) else 2) if each.type == tokenize.NAME else kinds.get(each.type, 0)
        if kind and each.start[0] <= len(lines):
            begin = starts[each.start[0] - 1] + len(lines[each.start[0] - 1][: each.start[1]].encode())
            found[begin : begin + len(each.string.encode())] = kind
    return found


def labelled(bench: Bench, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of half a row's length of code's tokens and the lexical class of each: int64 [rows, LENGTH / 2] both."""
    tokens, tokenizer, wide = bench.tokens(), bench.tokenizer(), LENGTH // 2
    rows, wanted = [], []
    for document in tokens.documents(split, "domain", "code").tolist()[:count]:  # type: ignore[arg-type]
        ids = tokens.read(document)[:-1]
        try:
            kinds = labels(tokenizer.decode(ids))
        except (tokenize.TokenError, SyntaxError):
            continue
        ids = ids[: 6 * LENGTH]
        raw = [tokenizer.bytes_of(int(token)) for token in ids]
        begins = np.cumsum([0] + [len(each) for each in raw])[:-1] + np.array([len(each) - len(each.lstrip()) for each in raw])
        for start in range(0, len(ids) - wide, wide):
            rows.append(torch.from_numpy(ids[start : start + wide]))
            wanted.append(torch.from_numpy(kinds[np.minimum(begins[start : start + wide], len(kinds) - 1)]))
    return torch.stack(rows), torch.stack(wanted)


def tuned(bench: Bench, model: Any, seed: int) -> float:
    """Balanced accuracy on held-out documents of a copy of the model tuned on the classes of training documents, at the best of a few rates."""
    return max(_tuned(bench, model, seed, rate) for rate in RATES)


def _tuned(bench: Bench, model: Any, seed: int, rate: float) -> float:
    rows, classes = labelled(bench, "train", 10 if bench.quick else 60)
    model, draw = copy.deepcopy(model).train().requires_grad_(True), torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(model.options["width"], 7)
    torch.nn.init.zeros_(head.weight)
    moving, steps = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=rate), 4 if bench.quick else 400

    def states(chosen: torch.Tensor) -> torch.Tensor:
        return head(model(Batch(chosen, torch.arange(chosen.shape[1]).expand_as(chosen), open=torch.ones_like(chosen, dtype=torch.bool))).hidden)

    for step in range(steps):
        for group in moving.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        chosen = torch.randint(len(rows), (16,), generator=draw)
        moving.zero_grad()
        F.cross_entropy(states(rows[chosen]).flatten(0, 1), classes[chosen].flatten(), ignore_index=0).backward()
        moving.step()
    rows, classes = labelled(bench, "held_out", 10 if bench.quick else 80)
    with torch.no_grad():
        guess = torch.cat([states(part)[..., 1:].argmax(-1) + 1 for part in rows.split(32)])
    return float(np.mean([float((guess[classes == kind] == kind).double().mean()) for kind in classes.unique().tolist() if kind]))
