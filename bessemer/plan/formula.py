"""What one rank sends in a step along each axis, as docs/parallel.md says it: sums one can do by hand, held to real ranks in tests/ranks/test_bytes.py.

They are for decoders in float32 whose remat is "none" or "selective", whose rows fill their columns, and whose experts are used evenly; a
dry run (plan/dry.py) listens instead, and so has no such limits. A ring is assumed where there is a choice: of a whole of W bytes a rank of n sends
(n - 1) / n W to gather or scatter it and twice that to sum it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from bessemer.core.mesh import ROWS, TOKENS
from bessemer.models.layers.attention import Attention
from bessemer.models.layers.experts import mixtures
from bessemer.models.layers.linear import Linear
from bessemer.parallel.context.columns import SHORT
from bessemer.parallel.context.plan import layouts
from bessemer.parallel.expert import products
from bessemer.parallel.pipeline import KINDS
from bessemer.parallel.tensor import CUT

if TYPE_CHECKING:
    from bessemer.plan.dry import Plan

NUMBER = 4
"""Bytes of a parameter, a gradient, an activation."""


def moved(ranks: int) -> float:
    """The share of a whole that each of so many ranks sends to gather or to scatter it."""
    return (ranks - 1) / ranks


def sent(plan: Plan) -> dict[str, float]:
    """Bytes that rank 0 sends in a step, by axis: "data", "replica", "context", "tensor", "expert", "pipe".

    "data" is the sharing out of parameters and gradients over data x context, and where nothing is shared out (`shard = "none"`) the sum of
    gradients over replica x data x context. What the engine adds up of counts and figures, some hundred bytes, is not in it.
    """
    with torch.device("meta"):
        model: Any = plan.model(plan.vocabulary, 0)
    data, replica = _parameters(plan, model)
    return {"data": data, "replica": replica, "context": _context(plan, model), "tensor": _tensor(plan, model)} | {
        "expert": _expert(plan, model),
        "pipe": _pipe(plan, model),
    }


def _rows(plan: Plan) -> int:
    """Of a micro-batch, on each rank."""
    return max(1, -(-plan.rows // plan.mesh.count(*ROWS)))


def _columns(plan: Plan) -> int:
    """Of a row, on each rank of the context axis."""
    return -(-plan.length // plan.mesh.context)


def _parameters(plan: Plan, model: Any) -> tuple[float, float]:
    """(along data, along replica): what is gathered and scattered, or only summed."""
    mesh, shard, steps = plan.mesh, plan.parallel.shard, plan.micro_batches
    ordinary, routed = mesh.data * mesh.context, mesh.expert_data
    if shard == "none" or mesh.count(*TOKENS) == 1:
        both = mesh.replica * ordinary, mesh.replica * routed
        held = [sum(math.prod(shape) for shape, _, own in _shapes(plan, model) if own == kind) for kind in (False, True)]
        return sum(2 * moved(n) * NUMBER * size for n, size in zip(both, held, strict=True)), 0.0
    data = replica = 0.0
    for shape, in_block, own in _shapes(plan, model):
        n = routed if own else ordinary
        if own and shape[0] % n and shape[1] % n == 0:
            shape = [shape[1], shape[0], *shape[2:]]
        piece = -(-shape[0] // n) * math.prod(shape[1:])
        gathers = (2 * steps if in_block else steps) if shard in ("full", "levels") else 1
        scatters = 1 if shard == "state" else steps
        if shard == "levels":  # inside pairs and nodes as often as with "full", over them once
            pair, node = _sets(plan, n)
            data += NUMBER * n * piece * (moved(pair) * gathers + moved(node) * scatters + moved(n // pair) / pair + moved(n // node) / node)
            replica += 2 * moved(mesh.replica) * NUMBER * piece
            continue
        data += moved(n) * NUMBER * n * piece * (gathers + scatters)
        replica += 2 * moved(mesh.replica) * NUMBER * piece * scatters
    return data, replica


def _sets(plan: Plan, ranks: int) -> tuple[int, int]:
    """How many of these ranks share out parameters, and gradients, as parallel/data.py divides them."""
    pair = math.gcd(plan.parallel.pair, ranks)
    return pair, pair * math.gcd(plan.parallel.node // plan.parallel.pair, ranks // pair)


def _shapes(plan: Plan, model: Any) -> list[tuple[list[int], bool, bool]]:
    """Of each parameter: its shape on a rank before it is shared out along data, whether it is a block's, and whether it is the experts'."""
    own = {id(p) for product in products(model) for p in product.parameters()}
    inside = {id(p) for block in [*model.blocks, *(module.block for module in model.ahead)] for p in block.parameters()}
    found: dict[int, tuple[list[int], bool, bool]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shape, axes = list(parameter.shape), getattr(module, "axes", {}).get(name, ())
            if id(parameter) in own:
                shape[0] //= plan.mesh.expert
                shape = [size // plan.mesh.expert_tensor if axis == "ffn" else size for size, axis in zip(shape, axes, strict=True)]
            else:
                shape = [-(-size // plan.mesh.tensor) if axis in CUT else size for size, axis in zip(shape, axes, strict=False)]
            found.setdefault(id(parameter), (shape, id(parameter) in inside, id(parameter) in own))
    return list(found.values())


def _context(plan: Plan, model: Any) -> float:
    """Keys and values of each layer, there and back; beside them what an objective looks up of tokens further on, which is not counted."""
    ranks, rows, places = plan.mesh.context, _rows(plan), _columns(plan)
    total = 0.0
    for layer in (module for module in model.modules() if isinstance(module, Attention) and ranks > 1):
        heads, kv_heads = layer.heads // plan.mesh.tensor, layer.kv_heads // plan.mesh.tensor
        each = rows * places * layer.head_size * NUMBER  # a head's queries, keys or values
        ring, exchange = _layout(plan, heads, kv_heads)
        if ring * exchange == 1:  # gathered forward, gradients scattered backward
            total += 2 * moved(ranks) * ranks * 2 * kv_heads * each
            continue
        shared = kv_heads if kv_heads >= exchange else heads
        total += 2 * moved(exchange) * 2 * (heads + shared) * each  # queries, keys, values to heads and results back, and so their gradients
        total += (3 * ring - 2) * 2 * shared * each * (ring > 1)  # forward ring - 1 times on, backward too, and gradients all the way round
    return plan.micro_batches * total


def _layout(plan: Plan, heads: int, kv_heads: int) -> tuple[int, int]:
    """(ring, exchange) sizes; (1, 1) where keys and values are gathered."""
    ranks, method = plan.mesh.context, plan.parallel.context
    if method == "gather" or (method == "auto" and plan.length <= SHORT):
        return 1, 1
    if method in ("ring", "ulysses"):
        return (ranks, 1) if method == "ring" else (1, ranks)
    found = [each for each in layouts(ranks, heads if method == "both" else kv_heads) if method == "auto" or min(each) > 1]
    return found[0] if found else (ranks, 1)


def _tensor(plan: Plan, model: Any) -> float:
    """Hidden states between products, the vocabulary's sums, and once the gradients of what all ranks hold alike."""
    ranks, places = plan.mesh.tensor, _rows(plan) * _columns(plan)
    if ranks == 1:
        return 0.0
    wide = model.options["width"]
    hidden = NUMBER * places * wide
    padded = NUMBER * _rows(plan) * -(-_columns(plan) // ranks) * ranks * wide
    chains, layers, heads = 1 + len(model.ahead), len(model.blocks) + len(model.ahead), 1 + len(model.ahead)
    blocks = 8 * moved(ranks) * padded * layers  # each of two parts gathers and scatters, forward and backward
    ends = 2 * moved(ranks) * padded * chains  # joined at the end forward, at the beginning backward
    looked_up = 2 * moved(ranks) * hidden * heads  # the embedding's sum forward
    scored = 2 * moved(ranks) * (hidden + 3 * NUMBER * places) * heads  # the head's gradient; and of each token a maximum and two sums
    whole_norms = 4 * moved(ranks) * NUMBER * places * sum(_whole_norms(layer) for layer in model.modules())
    return plan.micro_batches * (blocks + ends + looked_up + scored + whole_norms) + _alike(plan, model)


def _whole_norms(layer: Any) -> int:
    """How many norms over all heads an attention layer has."""
    parts = [part for part in layer.children() if isinstance(layer, Attention) and not isinstance(part, Linear)]
    return sum("heads" in axes for part in parts for axes in getattr(part, "axes", {}).values())


def _alike(plan: Plan, model: Any) -> float:
    """Gradients of parameters inside blocks that every rank of the tensor axis holds, summed once a step."""
    mesh, total = plan.mesh, 0.0
    shared = plan.parallel.shard != "none" and mesh.count(*TOKENS) > 1
    own = {id(p) for product in products(model) for p in product.parameters()}
    for block in [*model.blocks, *(module.block for module in model.ahead)]:
        for module in block.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in own and not CUT & set(getattr(module, "axes", {}).get(name, ())):
                    first, rest = parameter.shape[0], math.prod(parameter.shape[1:])
                    size = NUMBER * rest * (-(-first // (mesh.data * mesh.context)) if shared else first)
                    over = mesh.tensor if shared else mesh.tensor * mesh.count(*TOKENS)  # then both are summed at once,
                    total += 2 * size * (moved(over) - (0.0 if shared else moved(mesh.count(*TOKENS))))  # and "data" has counted its part
    return total


def _expert(plan: Plan, model: Any) -> float:
    """Rows to their experts and back, forward and backward, and how many they are."""
    ranks, total = plan.mesh.expert * plan.mesh.expert_tensor, 0.0
    if ranks == 1:
        return 0.0
    for layer in mixtures(model).values():
        rows = NUMBER * _rows(plan) * _columns(plan) * layer.real * model.options["width"] * plan.mesh.expert_tensor  # to each that shares them
        total += moved(ranks) * (4 * rows + 8 * layer.count * plan.mesh.expert_tensor)
    return plan.micro_batches * total


def _pipe(plan: Plan, model: Any) -> float:
    """Hidden states to the next stage, and gradients back to the one before."""
    return 0.0 if plan.mesh.pipe == 1 else sends(plan, model, 0)[1]


def sends(plan: Plan, model: Any, place: int) -> tuple[int, float]:
    """How often a rank at this place of the pipe axis sends in a step, and how many bytes: hidden states on, gradients back, and with experts
    the routers' loss so far; nothing where the neighbouring stage lies on the same rank."""
    kind, ranks = KINDS[plan.parallel.pipe], plan.mesh.pipe
    count = ranks * kind.stages
    ranks_of = [ranks - 1 - number % ranks if kind.folded and number // ranks % 2 else number % ranks for number in range(count)]
    ways = sum((here == place) + (there == place) for here, there in pairwise(ranks_of) if here != there)
    passes = plan.micro_batches
    if plan.parallel.pipe != "gpipe":  # made up to at least one for each stage, in whole turns of the ranks
        passes = -(-max(passes, count) // ranks) * ranks
    routed = bool(model.options["experts"])
    size = NUMBER * _rows(plan) * _columns(plan) * model.options["width"] + NUMBER * routed
    return ways * passes * (1 + routed), float(ways * passes * size)
