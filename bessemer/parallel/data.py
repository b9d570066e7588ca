"""The data axis: parameters, gradients and optimizer state shared out over data x context, and copied over replicas.

How much is shared out is `shard`; how to read it in the names of ZeRO (Rajbhandari et al. 2020):

    auto    none where parameters, gradients and two moments in float32 take at most a quarter of a rank's memory, else full
    none    nothing; gradients are summed after the last micro-batch
    state   optimizer state (ZeRO-1): parameters are gathered once a step, gradients scattered after the last micro-batch
    grad    and gradients (ZeRO-2): scattered after every micro-batch
    full    and parameters (ZeRO-3): gathered for each block, forward and backward
    levels  optimizer state over all ranks, gradients over a node, parameters over neighbours (parallel/levels.py)

With several replicas the sharing out stays inside a replica (hybrid sharding, Zhao et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from bessemer.core import device, shards
from bessemer.core.mesh import TOKENS, World
from bessemer.core.shared_memory import possible
from bessemer.parallel import expert
from bessemer.parallel.levels import Levels
from bessemer.parallel.neighbours import Neighbours

Shard = Literal["auto", "none", "state", "grad", "full", "levels"]
STATE_BYTES, ROOM = 16, 0.25
"""Bytes of training state for each parameter, and the share of memory that it may take to be kept whole."""


def apply(
    model: Any,
    world: World,
    shard: Shard,
    gather: torch.dtype | None,
    chains: list[list[nn.Module]],
    roots: Sequence[nn.Module],
    sets: tuple[int, int],
    in_memory: bool,
) -> list[Levels] | list[Neighbours]:
    """Shards the model's parameters, block by block and then the rest, in place.

    Args:
        chains: of blocks that follow one another.
        roots: the model, or the stages of it that lie on this rank.
        gather: the type parameters travel and are computed in; None: their own.
        sets: for "levels": ranks that share out parameters, and gradients.
        in_memory: whether ranks of one machine exchange through memory they have in common.

    Returns:
        What guides the collectives of "levels", or those in memory; else nothing.

    Raises:
        RecipeError: the ranks can't be divided into such sets.
    """
    again = shard in ("full", "levels") and list(roots) == [model]  # stages of a pipeline keep them from forward to backward
    axes = ("replica", "shard") if world.count("replica") > 1 else ("shard",)
    policy = MixedPrecisionPolicy(param_dtype=gather, reduce_dtype=torch.float32 if gather is not None else None, cast_forward_inputs=False)
    products = expert.products(model)
    for product in products:
        placed = _placement(world.count("expert_data"))
        fully_shard(product, mesh=world.experts[axes], reshard_after_forward=again, mp_policy=policy, shard_placement_fn=placed)
    blocks: list[Any] = [block for chain in chains for block in chain]
    for block in blocks:
        fully_shard(block, mesh=world.parameters[axes], reshard_after_forward=again, mp_policy=policy)
    for root in roots:
        fully_shard(root, mesh=world.parameters[axes], reshard_after_forward=False, mp_policy=policy)
    wrapped: list[Any] = [*products, *blocks, *roots]
    for module in wrapped:
        module.set_gradient_divide_factor(1.0)  # gradients are sums: the engine has divided by global counts
        module.set_force_sum_reduction_for_comms(True)
    for run in [blocks] if list(roots) == [model] else chains:  # never from one stage into another, whose turn is later
        for before, after in pairwise(run):
            before.set_modules_to_forward_prefetch([after])
            after.set_modules_to_backward_prefetch([before])
    if shard == "levels":
        return _levels(world, sets, [*blocks, *roots], products)
    return _neighbours(world, [*blocks, *roots], products) if in_memory else []


def _neighbours(world: World, dense: list[Any], products: list[Any]) -> list[Neighbours]:
    found = []
    for mesh, modules in ((world.parameters, dense), (world.experts, products)):
        if modules and possible(mesh["shard"].get_group()):
            found.append(Neighbours(mesh["shard"].get_group()))
            for module in modules:
                found[-1].attach(module)
    return found


def _levels(world: World, sets: tuple[int, int], dense: list[Any], products: list[Any]) -> list[Levels]:
    """Ordinary layers divide the ranks of data x context, experts those of expert_data, as far as the sizes of the sets divide them."""
    pair, node = sets
    found = [Levels(world, "shard", world.mesh.members(world.rank, "data", "context"), pair, node)]
    for module in dense:
        found[0].attach(module)
    count = world.count("expert_data")
    if products and count > 1:
        pair = math.gcd(pair, count)
        node = pair * math.gcd(node // pair, count // pair)
        found.append(Levels(world, "expert shard", world.mesh.members(world.rank, "expert_data"), pair, node))
        for module in products:
            found[1].attach(module)
    return found


def _placement(count: int) -> Any:
    """Experts are shared out whole where `count` ranks divide them, else each is cut along its outputs."""

    def place(weight: torch.nn.Parameter) -> torch.distributed.tensor.Shard:
        experts, outputs, _ = shards.local(weight).shape
        return torch.distributed.tensor.Shard(1 if experts % count and outputs % count == 0 else 0)

    return place


def chosen(model: nn.Module, world: World, shard: Shard) -> Shard:
    """What "auto" stands for: the same on every rank, by rank 0's memory and what stages, tensor and expert leave a rank of the whole model."""
    if shard != "auto":
        return shard
    routed = sum(p.numel() for product in expert.products(model) for p in product.parameters())
    rest = sum(p.numel() for p in model.parameters()) - routed
    held = (rest / world.count("tensor") + routed / world.count("expert", "expert_tensor")) / world.count("pipe")
    return "none" if STATE_BYTES * held <= ROOM * world.agree(device.memory()) else "full"


def wanted(world: World, shard: Shard) -> bool:
    """Whether anything is to be sharded."""
    return shard != "none" and world.count(*TOKENS) > 1
