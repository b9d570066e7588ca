"""Activations computed again in the backward pass instead of held: all of a block's, all but the costly ones, or what a budget asks for.

full       a block keeps its input alone, and its forward pass is taken again (Chen et al. 2016)
selective  results of matrix products, attention, experts and collectives are kept, or of those kinds that are named, and the cheap rest is
           computed again (Korthikanti et al. 2022)
budget     the compiler keeps what fits a share of the memory that keeping everything would take, and saves the most time with it
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bessemer.core import products
from bessemer.core.errors import RecipeError
from bessemer.models.layers import grouped, native_attention

Remat = Literal["none", "full", "selective", "budget"]


def _operator(custom: Any) -> Any:
    return custom._opoverload


Kind = Literal["products", "attention", "experts", "collectives"]

KEPT: dict[Kind, set[Any]] = {
    "products": {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default, _operator(products._product)},
    "attention": {
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        _operator(native_attention._forward),
    },
    "experts": {_operator(grouped._product)},
    "collectives": {
        torch.ops._c10d_functional.all_gather_into_tensor.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
        torch.ops._c10d_functional.all_reduce.default,
        torch.ops._c10d_functional.all_to_all_single.default,
    },
}
"""The operators whose results "selective" may keep: what is costly to compute twice."""


def apply(blocks: Iterable[Any], how: Remat, keep: Iterable[Kind], budget: float, compile: bool) -> None:
    """Lets blocks forget activations, in place; `kept` are then the operators whose results a block holds on to.

    Args:
        keep: for "selective": the kinds of operators whose results are kept.
        budget: for "budget": the share of the activations' memory that may be used, from 0 to 1.
        compile: whether the blocks will be compiled.

    Raises:
        RecipeError: a budget is given to blocks that are not compiled.
    """
    if how == "budget" and not compile:
        raise RecipeError("a memory budget is solved by the compiler, and nothing is compiled", key="parallel.remat", mend='remat = "selective"')
    if compile:  # for all that is compiled from now on, so a run without a budget must say so after one with
        torch._functorch.config.activation_memory_budget = budget if how == "budget" else 1.0  # type: ignore[attr-defined]
    if how not in ("none", "budget"):
        kept = {operator for kind in keep for operator in KEPT[kind]}
        more: dict[str, Any] = {} if how == "full" else {"context_fn": partial(create_selective_checkpoint_contexts, partial(_policy, kept))}
        for block in blocks:
            block.kept = kept if how == "selective" else set()
            block.forward = partial(_again, block, type(block).forward, more)


def _again(block: nn.Module, forward: Any, more: dict[str, Any], *given: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *given)
    return checkpoint(forward, block, *given, use_reentrant=False, preserve_rng_state=False, **more)


def _policy(kept: set[Any], context: Any, op: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE
