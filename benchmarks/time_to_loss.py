"""Seconds of training to the same held-out loss: our defaults against AdamW in a compiled loop written by hand, tuned.

    python benchmarks/time_to_loss.py [--quick] [--seconds 120]

Both train the `tiny` shape (see loops.py) on the same documents in the same number format, 16 rows of 256 tokens a step; compilation
(the first step) and evaluation don't count. The loop by hand: rows cut from concatenated documents, AdamW with warm-up and cosine, its
rate the best of three. Ours: documents packed whole (best fit), Muon and AdamW at their default rates, warm-up-stable-decay; nothing is tuned
for this. Ours gets 1/1.6, 1/2 and 1/2.5 of the time; what counts is the least at which its held-out bits per byte are no worse. The model
made by hand is measured through our evaluation, its weights put into our decoder (the architecture is the same).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from loops import SHAPES, ByHand
from results import finish
from throughput import HERE, tokens_store

import bessemer
from bessemer.core import device
from bessemer.data.loader import Loader
from bessemer.data.tokens import Tokens
from bessemer.evaluate.held_out import document_sums
from bessemer.models.families.decoder import Decoder

C = SHAPES["tiny"]
MODEL = {"name": "decoder", "depth": C["depth"], "width": C["width"], "heads": C["heads"], "ffn": C["ffn"], "qk_norm": "none", "length": C["length"]}
RATES, SHARES = (2e-3, 4e-3, 8e-3), (1 / 1.6, 1 / 2, 1 / 2.5)


def by_hand(store: Path, rate: float, seconds: float) -> dict[str, float]:
    """Trains the loop written by hand for so long and measures it."""
    tokens, dtype = Tokens.open(store / "tokenize"), device.compute_dtype()
    loader = Loader(tokens, length=C["length"], pack="concat", seed=1)
    torch.manual_seed(0)
    model = ByHand(C)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    run = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    spent, step = 0.0, 0
    while spent < seconds:
        begun, share = time.perf_counter(), spent / seconds
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (share + 1e-3) / 0.05) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
        batch = loader.batch(step * C["rows"], C["rows"])
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = run(batch.tokens)
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, C["vocabulary"]), batch.targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - begun if step else 0.0
        step += 1
    return {"bits_per_byte": measure(as_decoder(model), tokens), "steps": step}


def as_decoder(model: ByHand) -> Decoder:
    """Our decoder with the weights of the model made by hand."""
    options = {key: value for key, value in MODEL.items() if key != "name"}
    made, state = Decoder(C["vocabulary"], 0, **options), {k: v.detach() for k, v in model.state_dict().items()}
    with torch.no_grad():
        made.embed.weight.copy_(state["embed.weight"])
        made.head.weight.copy_(state["head.weight"])
        made.norm.weight.copy_(state["norm.weight"])
        for number, block in enumerate(made.blocks):
            part = {name: state[f"blocks.{number}.{name}.weight"] for name in ("first", "second", "q", "k", "v", "o", "gate", "up", "down")}
            block.attention_norm.weight.copy_(part["first"])
            block.mlp_norm.weight.copy_(part["second"])
            block.attention.qkv.weight.copy_(torch.cat([part["q"], part["k"], part["v"]]))
            block.attention.out.weight.copy_(part["o"])
            block.mlp.gate_up.weight.copy_(torch.cat([part["gate"], part["up"]]))
            block.mlp.down.weight.copy_(part["down"])
        tokens = torch.randint(0, C["vocabulary"], (2, 32))
        torch.testing.assert_close(made(tokens), _logits(model, tokens), rtol=1e-2, atol=1e-2)
    return made


def _logits(model: ByHand, tokens: torch.Tensor) -> torch.Tensor:
    cos, sin = model.cos, model.sin
    model.cos, model.sin = cos[: tokens.shape[1]], sin[: tokens.shape[1]]
    with torch.compiler.set_stance("force_eager"):
        return model(tokens)


def measure(model: torch.nn.Module, tokens: Tokens) -> float:
    sums = [document_sums(model, tokens, length=C["length"], rows=16, domain=domain, limit=60_000) for domain in tokens.domains]
    return float(sum(each.bits.sum() for each in sums) / sum(each.bytes.sum() for each in sums))


def ours(store: Path, seconds: float) -> dict[str, float]:
    """Our train stage at its defaults, for so many seconds."""
    stage = {"do": "train", "inputs": {"tokens": str(store / "tokenize"), "tokenizer": str(store / "train_tokenizer")}, "model": MODEL}
    stage |= {"length": C["length"], "batch": C["rows"], "seconds": seconds, "tokens": 10**9, "hooks": []}
    out = Path(tempfile.mkdtemp()) / "run"
    bessemer.run({"name": "time", "stage": [stage]}, out=out, quiet=True)
    manifest = json.loads((out / "train/manifest.json").read_text())
    return {"bits_per_byte": measure(bessemer.load(out / "train"), Tokens.open(store / "tokenize")), "steps": manifest["info"]["progress"]["step"]}


def call(*options: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, str(HERE / "time_to_loss.py"), *options], capture_output=True, text=True, cwd=HERE)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{options}:\n{done.stderr[-3000:]}")
    print(f"  {' '.join(options):36s} {lines[-1]}", flush=True)
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--by-hand", type=float, help="train the loop written by hand at this rate")
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("--store", type=Path, default=HERE.parent / ".peers" / "throughput-store")
    given = parser.parse_args()
    if given.by_hand:
        print(json.dumps(by_hand(given.store, given.by_hand, given.seconds)))
        return
    if given.ours:
        print(json.dumps(ours(given.store, given.seconds)))
        return
    tokens_store(given.store)
    seconds = 4.0 if given.quick else given.seconds
    hand = {rate: call("--by-hand", str(rate), "--seconds", str(seconds)) for rate in (RATES[:1] if given.quick else RATES)}
    best = min(hand.values(), key=lambda found: found["bits_per_byte"])
    tried = {share: call("--ours", "--seconds", str(round(seconds * share, 1))) for share in (SHARES[:1] if given.quick else SHARES)}
    reached = [share for share, found in tried.items() if found["bits_per_byte"] <= best["bits_per_byte"]]
    times = 1 / min(reached) if reached else 0.0
    print(
        f"by hand: {best['bits_per_byte']:.4f} bits per byte in {seconds:.0f} s; ours no worse in 1/{times:.2f} of that" if reached else "not reached"
    )
    figures = {"by hand": {str(k): v for k, v in hand.items()}, "ours": {f"1/{1 / k:.1f}": v for k, v in tried.items()}}
    figures |= {"times faster, at least": round(times, 2), "seconds": seconds, "dtype": str(device.compute_dtype())}
    finish("time_to_loss", figures, {"times faster": 1.6}, times >= 1.6, given.quick)


if __name__ == "__main__":
    main()
