"""Mixtral."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Config
from bessemer.models.convert._mixture import Mixture


class Mixtral(Mixture):
    """Mixtral 8x7B and 8x22B: Mistral with experts in every layer, the weights of the chosen ones summing to 1 (Jiang et al. 2024)."""

    model_type, name = "mixtral", "MixtralForCausalLM"
    default_eps = 1e-5
    required = {key: value for key, value in LLAMA_LIKE.items() if key != "window"} | {"window_layers": (None,), "attention_bias": ("none",)}
    place, gate, up, down = "block_sparse_moe", "w1", "w3", "w2"

    def options(self, config: Config) -> dict[str, Any]:
        o = super().options(config)
        config.must_be("router_jitter_noise", 0.0)
        return o | {"window": config("sliding_window", int, None), "experts": self.experts(config, o["ffn"], True)}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        e = o["experts"]
        more = {"num_local_experts": e["count"], "num_experts_per_tok": e["active"], "sliding_window": o["window"]}
        return super().config(o, vocabulary) | more

    def allowed(self, o: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        return super().allowed(o) | {"normalise": (True,)}
