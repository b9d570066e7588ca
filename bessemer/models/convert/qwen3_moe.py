"""Qwen 3 with experts."""

from __future__ import annotations

from typing import Any

from bessemer.core.errors import ArtifactError
from bessemer.models.convert._architecture import LLAMA_LIKE, Config, read_windows, write_windows
from bessemer.models.convert._mixture import Mixture


class Qwen3Moe(Mixture):
    """Qwen 3 with experts: RMSNorm on each head's queries and keys, experts in all layers or all but the first (Yang et al. 2025)."""

    model_type, name = "qwen3_moe", "Qwen3MoeForCausalLM"
    required = {key: value for key, value in LLAMA_LIKE.items() if key != "window"} | {"qk_norm": ("head",)}

    def options(self, config: Config) -> dict[str, Any]:
        o = super().options(config)
        window, layers = read_windows(config, o["depth"])
        config.must_be("decoder_sparse_step", 1)
        dense = config("mlp_only_layers", list, [])
        if dense != list(range(len(dense))):
            problem = f"the layers without experts are {dense}, and only the first ones can be"
            raise ArtifactError(problem, file=config.file, key="mlp_only_layers")
        normalise = config("norm_topk_prob", bool, False)
        experts = self.experts(config, config("moe_intermediate_size", int), normalise, len(dense))
        bias = "all" if config("attention_bias", bool, False) else "none"
        return o | {"qk_norm": "head", "attention_bias": bias, "window": window, "window_layers": layers, "experts": experts}

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        e = o["experts"]
        more = {
            "num_experts": e["count"], "num_experts_per_tok": e["active"], "norm_topk_prob": e["normalise"], "moe_intermediate_size": e["ffn"],
            "mlp_only_layers": list(range(e["dense"])), "decoder_sparse_step": 1, "attention_bias": o["attention_bias"] == "all",
        }  # fmt: skip
        return super().config(o, vocabulary) | write_windows(o) | more

    def allowed(self, o: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {}
