"""OLMoE."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import LLAMA_LIKE, Config
from bessemer.models.convert._mixture import Mixture


class Olmoe(Mixture):
    """OLMoE: many small experts in every layer, norms over all heads of queries and keys (Muennighoff et al. 2024)."""

    model_type, name = "olmoe", "OlmoeForCausalLM"
    default_eps = 1e-5
    required = LLAMA_LIKE | {"qk_norm": ("whole",)}

    def options(self, config: Config) -> dict[str, Any]:
        o = super().options(config)
        config.must_be("clip_qkv", None)
        bias = "all" if config("attention_bias", bool, False) else "none"
        experts = self.experts(config, o["ffn"], config("norm_topk_prob", bool, False))
        return o | {"qk_norm": "whole", "attention_bias": bias, "experts": experts}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        e = o["experts"]
        more = {"num_experts": e["count"], "num_experts_per_tok": e["active"], "norm_topk_prob": e["normalise"]}
        return super().config(o, vocabulary) | more | {"attention_bias": o["attention_bias"] == "all"}
