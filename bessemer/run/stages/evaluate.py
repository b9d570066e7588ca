"""The stage that measures a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from bessemer.core import device, files, products
from bessemer.core.registry import Choice, Kind, as_plain
from bessemer.core.work import Work
from bessemer.data.example_store import Examples
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.evaluate.evaluation import FILE, Evaluation, measure
from bessemer.evaluate.subject import Subject
from bessemer.models.package import Model


def evaluate(
    work: Work,
    model: Model,
    tokenizer: Tokenizer,
    tokens: Tokens | None = None,
    examples: list[Examples] = [],
    *,
    tasks: list[Annotated[Choice, Kind("evaluate/tasks", label=str)]] = [{"name": "bits_per_byte", "limit": "all"}],  # type: ignore[list-item]
    precision: Literal["float32", "auto"] = "float32",
) -> Evaluation:
    """Measures a model on tasks, with 95% intervals.

    Args:
        tasks: what is measured: bits per byte of all held-out documents by default. An entry's `label` names its figures.
        precision: float32, or `auto` for what this machine is fastest in.

    Raises:
        BessemerError: a task's file is not as it must be, or the tokenizer is not the model's.
    """
    if tokens is not None:
        tokens.check_tokenizer(tokenizer)
    built = model.build(device.compute_dtype() if precision == "auto" else None).to(device.device())
    if precision == "float32":
        built = built.float()
    subject = Subject(built, tokenizer, tokens, work.seed, work.smoke, work.progress, examples)
    with products.rounded(precision == "auto"):
        found = measure(subject, tasks)
    about: dict[str, Any] = {"model": model.hash, "tokenizer": tokenizer.fingerprint, "tasks": as_plain(tasks)}
    files.write_json(work.out / FILE, about | {"figures": {name: {k: v.plain() for k, v in each.items()} for name, each in found.items()}})
    work.info |= {name: {key: round(float(value), 6) for key, value in each.items()} for name, each in found.items()}
    return Evaluation(work.out, {})
