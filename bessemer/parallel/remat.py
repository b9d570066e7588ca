"""Activations computed again in the backward pass instead of held: all of a block's, all but the costly ones, or what a budget asks for.

full       a block keeps its input alone, and its forward pass is taken again (Chen et al. 2016)
selective  results of matrix products, attention and collectives are kept, the cheap rest is computed again (Korthikanti et al. 2022)
budget     the compiler keeps what fits a share of the memory that keeping everything would take, and saves the most time with it
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bessemer.core.errors import RecipeError

Remat = Literal["none", "full", "selective", "budget"]

KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_to_all_single.default,
}
"""What is too costly to be computed twice."""


def apply(blocks: Iterable[Any], how: Remat, budget: float, compile: bool) -> None:
    """Lets blocks forget activations, in place.

    Args:
        budget: for "budget": the share of the activations' memory that may be used, from 0 to 1.
        compile: whether the blocks will be compiled.

    Raises:
        RecipeError: a budget is given to blocks that are not compiled.
    """
    if how == "budget":
        if not compile:
            raise RecipeError("a memory budget is solved by the compiler, and nothing is compiled", key="parallel.remat", mend='remat = "selective"')
        torch._functorch.config.activation_memory_budget = budget  # type: ignore[attr-defined]
    elif how != "none":
        more: dict[str, Any] = {} if how == "full" else {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
        for block in blocks:
            block.forward = partial(_again, block, type(block).forward, more)


def _again(block: nn.Module, forward: Any, more: dict[str, Any], *given: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *given)
    return checkpoint(forward, block, *given, use_reentrant=False, preserve_rng_state=False, **more)


def _policy(context: Any, op: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
