"""Llama 1 to 3.2."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Architecture, Config


class Llama(Architecture):
    """Llama 1 to 3.2 (Touvron et al. 2023; Grattafiori et al. 2024)."""

    model_type, name = "llama", "LlamaForCausalLM"
    required = LLAMA_LIKE | {"mlp_bias": (False, True)}

    def options(self, config: Config) -> dict[str, Any]:
        bias = "all" if config("attention_bias", bool, False) else "none"
        return super().options(config) | {"attention_bias": bias, "mlp_bias": config("mlp_bias", bool, False)}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return super().config(o, vocabulary) | {"attention_bias": o["attention_bias"] == "all", "mlp_bias": o["mlp_bias"]}
