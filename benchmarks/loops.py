"""Training loops as one writes them by hand or takes them from a library: what ours is held against.

Runs in the peers' own environment (see throughput.py) and imports nothing of ours:

    python loops.py {by_hand,transformers,litgpt} {tiny,small} {bfloat16,float32} [--eager]

It trains until it is killed and tells the time after each step.
"""

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

SHAPES = {
    "tiny": {"width": 256, "ffn": 688, "depth": 8, "heads": 8, "vocabulary": 8192, "length": 256, "rows": 16},
    "small": {"width": 512, "ffn": 1376, "depth": 8, "heads": 8, "vocabulary": 8192, "length": 512, "rows": 8},
}


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, ffn, self.heads = c["width"], c["ffn"], c["heads"]
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(width, ffn, bias=False), nn.Linear(width, ffn, bias=False), nn.Linear(ffn, width, bias=False)

    def forward(self, x, cos, sin):
        rows, length, width = x.shape
        h = self.first(x)
        q, k, v = (part(h).view(rows, length, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))

        def turned(t):
            a, b = t.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(v.dtype)

        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(rows, length, width))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class ByHand(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c["vocabulary"], c["width"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["depth"]))
        self.norm, self.head = nn.RMSNorm(c["width"]), nn.Linear(c["width"], c["vocabulary"], bias=False)
        size = c["width"] // c["heads"]
        angle = torch.outer(torch.arange(c["length"]).float(), 10000 ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def transformers_model(c):
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {"hidden_size": c["width"], "intermediate_size": c["ffn"], "num_hidden_layers": c["depth"], "num_attention_heads": c["heads"]}
    options |= {"vocab_size": c["vocabulary"], "max_position_embeddings": c["length"], "tie_word_embeddings": False, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**options, attn_implementation="sdpa"))


def litgpt_model(c):
    from litgpt import GPT, Config

    options = {
        "block_size": c["length"],
        "vocab_size": c["vocabulary"],
        "padded_vocab_size": c["vocabulary"],
        "n_layer": c["depth"],
        "n_head": c["heads"],
    }
    options |= {"n_embd": c["width"], "intermediate_size": c["ffn"], "rotary_percentage": 1.0, "parallel_residual": False, "bias": False}
    return GPT(Config(**options, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=["by_hand", "transformers", "litgpt"])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    c, dtype = SHAPES[given.shape], getattr(torch, given.dtype)
    torch.manual_seed(0)
    model = {"by_hand": ByHand, "transformers": transformers_model, "litgpt": litgpt_model}[given.loop](c)
    run = model if given.eager else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    draw = torch.Generator().manual_seed(0)

    def step():
        rows = torch.randint(0, c["vocabulary"], (c["rows"], c["length"] + 1), generator=draw)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = run(rows[:, :-1])
            logits = getattr(logits, "logits", logits)
            loss = F.cross_entropy(logits.float().view(-1, c["vocabulary"]), rows[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    while True:
        step()
        print(json.dumps({"step": time.time()}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
