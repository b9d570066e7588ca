"""Text from a model to the terminal, as it is written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from bessemer.data.tokenizer import Tokenizer


def write(model: nn.Module, tokenizer: Tokenizer, prompts: list[str], options: dict[str, Any], live: bool) -> list[dict[str, Any]]:
    """Continues each prompt.

    Args:
        options: those of `serve.generate.generate`.
        live: show a text while it is written; one after the other, so that they don't mix.

    Returns:
        for each prompt {"prompt", "text", "finish"}.
    """
    from bessemer.serve.generate import generate, stream

    if not live:
        found = generate(model, tokenizer, prompts, **options)
        return [{"prompt": each.prompt, "text": each.text, "finish": each.finish} for each in found]
    written = []
    for number, prompt in enumerate(prompts):
        seed = options["seed"] + prompts[:number].count(prompt)  # equal prompts get different texts
        text, finish = "", ""
        pieces = stream(model, tokenizer, [prompt], **{**options, "seed": seed})  # refuses what can't be before anything is shown
        _show(f"\x1b[1m{prompt}\x1b[0m" if sys.stdout.isatty() else prompt)
        for piece in pieces:
            _show(piece.text)
            text += piece.text
            finish = piece.finish or finish
        if finish == "context":
            _show(" [the model's context is full]")
        _show("\n" if number == len(prompts) - 1 else "\n\n")
        written.append({"prompt": prompt, "text": text, "finish": finish})
    return written


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
