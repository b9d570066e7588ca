"""A tiny model and a byte-level tokenizer to write with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bessemer.data.tokenizer import Tokenizer, write_tokenizer
from bessemer.models.families.decoder import Decoder


def byte_tokenizer(folder: Path, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """Every byte a token, some merged; then the token that begins and ends documents."""
    import tokenizers

    from bessemer.data.byte_level import characters

    vocabulary = {character: number for number, character in enumerate(characters())}
    for left, right in merges or []:
        vocabulary[left + right] = len(vocabulary)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges or []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    end = len(vocabulary)
    write_tokenizer(folder, backend, {"end": end, "begin": end, "pad": end, "fast": False})
    return Tokenizer.load(folder)


def tiny(vocabulary: int, seed: int = 1, **options: Any) -> Decoder:
    """A model whose next tokens are varied: random weights with a large head."""
    settings: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "length": 128} | options
    model = Decoder(vocabulary, seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()
