"""The architectures as transformers builds them: tiny, random, every weight away from its neutral value."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def _long(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", COMMON | {"num_key_value_heads": 4}),
    "llama3": ("Llama", COMMON | {"tie_word_embeddings": True, **_long("llama3", **LLAMA3)}),
    "llama_biased": ("Llama", COMMON | {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama_linear": ("Llama", COMMON | _long("linear", factor=3.0)),
    "llama_dynamic": ("Llama", COMMON | {"max_position_embeddings": 32} | _long("dynamic", factor=2.0)),
    "llama_yarn": ("Llama", COMMON | _long("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama_yarn_told": (
        "Llama",
        COMMON
        | _long(
            "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.3, truncate=False
        ),
    ),
    "llama_yarn_factor": ("Llama", COMMON | _long("yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.3)),
    "llama_longrope": (
        "Llama",
        COMMON | _long("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 3.0, 4.0], original_max_position_embeddings=32),
    ),
    "mistral": ("Mistral", COMMON | {"sliding_window": 9}),
    "qwen2": ("Qwen2", COMMON | {"tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2", COMMON | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", COMMON | {"head_dim": 16}),
    "olmo2": ("Olmo2", COMMON),
    "gpt2": ("GPT2", GPT2),
    "mixtral": ("Mixtral", COMMON | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9}),
    "qwen3_moe": ("Qwen3Moe", COMMON | MIXTURE | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe_dense": ("Qwen3Moe", COMMON | MIXTURE | {"head_dim": 16, "mlp_only_layers": [0], "tie_word_embeddings": True}),
    "olmoe": ("Olmoe", COMMON | {"num_experts": 6, "num_experts_per_tok": 3}),
}
MAIN = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "olmo2", "gpt2", "mixtral", "qwen3_moe", "olmoe"]


def reference(name: str, seed: int = 0) -> Any:
    """A transformers model in evaluation mode; norms' gains and biases are random too."""
    import transformers

    kind, options = SHAPES[name]
    torch.manual_seed(seed)
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, head)(getattr(transformers, f"{kind}Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
