"""Mistral."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Architecture, Config


class Mistral(Architecture):
    """Mistral 7B and its kin: Llama with a sliding window on every layer (Jiang et al. 2023)."""

    model_type, name = "mistral", "MistralForCausalLM"
    required = {key: value for key, value in LLAMA_LIKE.items() if key != "window"} | {"window_layers": (None,), "attention_bias": ("none",)}

    def options(self, config: Config) -> dict[str, Any]:
        return super().options(config) | {"window": config("sliding_window", int, None)}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return super().config(o, vocabulary) | {"sliding_window": o["window"]}
