"""OLMo 2."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Architecture, Config


class Olmo2(Architecture):
    """OLMo 2: norms after each part and over all heads of queries and keys (OLMo team 2024)."""

    model_type, name = "olmo2", "Olmo2ForCausalLM"
    default_eps = 1e-5
    required = LLAMA_LIKE | {"norm_place": ("reordered",), "qk_norm": ("whole",)}

    def options(self, config: Config) -> dict[str, Any]:
        bias = "all" if config("attention_bias", bool, False) else "none"
        return super().options(config) | {"norm_place": "reordered", "qk_norm": "whole", "attention_bias": bias}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return super().config(o, vocabulary) | {"attention_bias": o["attention_bias"] == "all"}
