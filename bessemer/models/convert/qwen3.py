"""Qwen 3."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Architecture, Config, read_windows, write_windows


class Qwen3(Architecture):
    """Qwen 3: Llama with RMSNorm on each head's queries and keys (Yang et al. 2025). Our default decoder is one."""

    model_type, name = "qwen3", "Qwen3ForCausalLM"
    required = {key: value for key, value in LLAMA_LIKE.items() if key != "window"} | {"qk_norm": ("head",)}

    def options(self, config: Config) -> dict[str, Any]:
        o = super().options(config)
        window, layers = read_windows(config, o["depth"])
        bias = "all" if config("attention_bias", bool, False) else "none"
        return o | {"head_size": config("head_dim", int, 128), "qk_norm": "head", "attention_bias": bias, "window": window, "window_layers": layers}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return super().config(o, vocabulary) | write_windows(o) | {"attention_bias": o["attention_bias"] == "all"}
