"""GPT-2."""

from __future__ import annotations

from typing import Any

from bessemer.models.convert._architecture import Architecture, Config, Source

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


class GPT2(Architecture):
    """GPT-2: learned positions, LayerNorm, biases everywhere, weights stored transposed (Radford et al. 2019)."""

    model_type, name = "gpt2", "GPT2LMHeadModel"
    dropped = (".attn.bias", ".attn.masked_bias")
    prefix = "transformer."
    required = {
        "mlp": ("gelu", "gelu_tanh"), "norm": ("layer",), "norm_place": ("pre",), "parallel": (False,), "positions": ("learned",), "head_bias": (False,),
        "qk_norm": ("none",), "attention_bias": ("all",), "mlp_bias": (True,), "window": (None,),
    }  # fmt: skip

    def why_not(self, o: dict[str, Any]) -> str | None:
        if o["kv_heads"] != o["heads"] or o["heads"] * o["head_size"] != o["width"]:
            return "heads don't divide the width evenly, each with its own keys"
        return super().why_not(o)

    def options(self, config: Config) -> dict[str, Any]:
        config.must_be("scale_attn_weights", True)
        config.must_be("scale_attn_by_inverse_layer_idx", False)
        config.must_be("add_cross_attention", False)
        config.must_be("quantization_config", None)
        width, heads = config("n_embd", int), config("n_head", int)
        activation = config.must_be("activation_function", *ACTIVATIONS)
        return {
            "depth": config("n_layer", int), "width": width, "heads": heads, "kv_heads": heads, "head_size": width // max(heads, 1),
            "ffn": config("n_inner", int, 4 * width), "mlp": ACTIVATIONS[activation], "norm": "layer", "norm_eps": config("layer_norm_epsilon", float, 1e-5),
            "qk_norm": "none", "attention_bias": "all", "mlp_bias": True, "positions": "learned", "length": config("n_positions", int, 1024),
            "tied": config("tie_word_embeddings", bool, True), "transfer": False,
        }  # fmt: skip

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        return {
            "vocab_size": vocabulary, "n_positions": o["length"], "n_ctx": o["length"], "n_embd": o["width"], "n_layer": o["depth"], "n_head": o["heads"],
            "n_inner": o["ffn"], "activation_function": "gelu_new" if o["mlp"] == "gelu_tanh" else "gelu", "layer_norm_epsilon": o["norm_eps"],
            "tie_word_embeddings": o["tied"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip

    def sources(self, o: dict[str, Any]) -> dict[str, Source]:
        found = {"embed.weight": Source(("transformer.wte.weight",)), "place.weight": Source(("transformer.wpe.weight",))}
        found |= {f"norm.{kind}": Source((f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")}
        pairs = {
            "attention_norm": "ln_1",
            "mlp_norm": "ln_2",
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        for layer in range(o["depth"]):
            for ours, theirs in pairs.items():
                for kind in ("weight", "bias"):
                    source = Source((f"transformer.h.{layer}.{theirs}.{kind}",), transposed=kind == "weight" and not ours.endswith("norm"))
                    found[f"blocks.{layer}.{ours}.{kind}"] = source
        if not o["tied"]:
            found["head.weight"] = Source(("lm_head.weight",))
        return found
