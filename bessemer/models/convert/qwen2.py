"""Qwen 2 and 2.5."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Architecture, Config, read_windows, write_windows


class Qwen2(Architecture):
    """Qwen 2 and 2.5: Llama with biases on queries, keys and values (Yang et al. 2024)."""

    model_type, name = "qwen2", "Qwen2ForCausalLM"
    required = {key: value for key, value in LLAMA_LIKE.items() if key != "window"} | {"attention_bias": ("qkv",)}

    def options(self, config: Config) -> dict[str, Any]:
        o = super().options(config)
        window, layers = read_windows(config, o["depth"])
        return o | {"attention_bias": "qkv", "window": window, "window_layers": layers}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return super().config(o, vocabulary) | write_windows(o)
