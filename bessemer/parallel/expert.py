"""The expert axis: each rank holds some of a layer's experts, and tokens travel to theirs and back (Lepikhin et al. 2020, "GShard").

The ranks of data x context x tensor are folded a second time for these layers, into expert_data x expert x expert_tensor (MoE Parallel Folding, Liu et
al. 2025): attention may be cut one way and experts another, each expert's own products among them (expert_tensor). Along tensor every rank routes its own columns, so an expert sees each token once
whatever the axes, and its gradient is the sum over the ranks that hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core import shards
from bessemer.core.collectives import Along, reduced, sum_forward
from bessemer.core.collectives import whole as joined
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World
from bessemer.models.layers.attention import Context, Spread
from bessemer.models.layers.experts import Compute, MixtureOfExperts, mixtures

AXES = ("replica", "expert_data")
"""The axes over which the gradients of experts are summed."""


def apply(model: nn.Module, world: World) -> dict[str, tuple[int, ...]]:
    """Gives each rank its experts, or its share of them, and has tokens sent to them, in place.

    Returns:
        The parts of stacked weights by name, for those that are cut part by part.

    Raises:
        RecipeError: the ranks don't divide the experts or their products, or there are none.
    """
    count, split, found = world.count("expert"), world.count("expert_tensor"), mixtures(model)
    if not found:
        key = "mesh.expert" if count > 1 else "mesh.expert_tensor"
        raise RecipeError("the model has no experts to share out", key=key, mend=f"use {key} = 1, or give the model experts")
    parts = {}
    for name, layer in found.items():
        width = layer.down.weight.shape[2]
        for ranks, size, what, key in ((count, layer.count, "experts", "expert"), (split, width, "elements of an expert", "expert_tensor")):
            if size % ranks:
                raise RecipeError(f"{size} {what} can't be shared evenly by {ranks} ranks", key=f"mesh.{key}", mend=f"choose a divisor of {size}")
        layer.exchange = None if count * split == 1 else Exchange(world.group("expert", "expert_tensor"), split)
        for product, dim in ((layer.up, 1), (layer.down, 2)):
            whole = product.weight
            piece = (
                shards.cut(whole.detach(), world.experts["expert"], 0)
                if split == 1
                else shards.cut(whole.detach(), world.experts["expert", "expert_tensor"], 0, dim, parts=product.parts)
            )
            product.weight = nn.Parameter(piece, requires_grad=whole.requires_grad)
            product.held = shards_here
        if split > 1 and len(layer.up.parts) > 1:
            parts[f"{name}.up.weight"] = layer.up.parts
    return parts


def shards_here(weight: Any) -> Tensor:
    """This rank's experts, or its share of them."""
    return weight.to_local()


def products(model: nn.Module) -> list[nn.Module]:
    """The modules whose parameters lie on the experts' own folding of the ranks."""
    return [product for layer in mixtures(model).values() for product in (layer.up, layer.down)]


class Exchange:
    """Sends rows to the ranks that hold their experts, and what those make of them back.

    Where several ranks share each expert's products (expert_tensor), each gets the rows and works out its part of the sum.

    Args:
        group: of expert x expert_tensor; each rank holds as many experts, neighbours together.
        split: how many neighbours share each expert.
    """

    def __init__(self, group: Any, split: int = 1) -> None:
        self.group, self.split = group, split

    @torch.compiler.disable
    def __call__(self, rows: Tensor, counts: Tensor, compute: Compute) -> Tensor:
        """rows: [rows, width] sorted by expert, counts: int64 [experts]; to the same shape."""
        sent = counts.view(self.group.size() // self.split, -1).repeat_interleave(self.split, 0)
        taken = torch.empty_like(sent)
        dist.all_to_all_single(taken, sent, group=self.group)
        out, back = sent.sum(1).tolist(), taken.sum(1).tolist()
        arrived = all_to_all(self.copied(rows, out), back, out, self.group)
        expert = torch.arange(taken.shape[1], device=rows.device).repeat(taken.shape[0]).repeat_interleave(taken.flatten())
        order = expert.argsort(stable=True)
        found = compute(arrived.index_select(0, order), taken.sum(0))
        return self.summed(all_to_all(torch.zeros_like(found).index_copy(0, order, found), out, back, self.group), out)

    def copied(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The rows in the order of the group's ranks, once for each that shares their expert."""
        if self.split == 1:
            return rows
        return torch.cat([part for part in rows.split(sizes[:: self.split]) for _ in range(self.split)])

    def summed(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """What came back, the parts of each sum added up: the reverse of `copied`."""
        if self.split == 1:
            return rows
        parts = rows.split(sizes)
        return torch.cat([torch.stack(parts[first : first + self.split]).sum(0) for first in range(0, len(parts), self.split)])


def all_to_all(rows: Tensor, taken: list[int], sent: list[int], group: Any) -> Tensor:
    """Sends so many rows to each rank of the group and gets so many from each; gradients go back the same way."""
    return _AllToAll.apply(rows, taken, sent, group)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, taken: list[int], sent: list[int], group: Any) -> Tensor:
        ctx.how = (sent, taken, group)
        return _travel(rows, taken, sent, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _travel(grads[0], *ctx.how), None, None, None


def _travel(rows: Tensor, taken: list[int], sent: list[int], group: Any) -> Tensor:
    found = rows.new_empty(sum(taken), rows.shape[1])
    dist.all_to_all_single(found, rows.contiguous(), taken, sent, group=group)
    return found


class SharedMixture(MixtureOfExperts):
    """A layer of experts between blocks cut along the columns: each rank of the tensor axis routes its own.

    Attributes:
        ranks: of the tensor axis.
        columns: says how many columns the pass has, those of all these ranks.
    """

    ranks: Along
    columns: Any

    def forward(self, x: Tensor, context: Context) -> Tensor:
        between = Between(context.spread, self.ranks, self.columns.count)
        valid = torch.ones(x.shape[0], self.columns.count, dtype=torch.bool, device=x.device) if context.valid is None else context.valid
        mixed = super().forward(x, context._replace(valid=between.piece(valid), spread=between))
        if self.seen is not None:
            summed = [sum_forward(each, self.ranks) for each in (self.seen.balance, self.seen.z)]
            counted = [reduced(each, self.ranks) for each in (self.seen.entropy, self.seen.demand, self.seen.dropped)]
            self.seen = type(self.seen)(*summed, *counted)
        return mixed


class Between:
    """`Spread` for a router whose columns are cut along tensor as well."""

    def __init__(self, outer: Spread | None, ranks: Along, count: int) -> None:
        self.outer, self.ranks, self.count = outer, ranks, count

    @property
    def longest(self) -> int:
        return 0 if self.outer is None else self.outer.longest

    attend: Callable[..., Tensor]
    keys: Callable[..., tuple[Tensor, Tensor]]

    def piece(self, values: Tensor) -> Tensor:
        """This rank's columns of those that the ranks of the tensor axis hold together; zeros where they don't divide."""
        size = self.ranks.piece(self.count)
        padded = F.pad(values, [0, 0] * (values.ndim - 2) + [0, size * self.ranks.size - self.count])
        return padded[:, self.ranks.index * size : (self.ranks.index + 1) * size]

    def whole(self, values: Tensor) -> Tensor:
        kind = torch.uint8 if values.dtype == torch.bool else values.dtype
        found = joined(values.detach().to(kind).contiguous(), 1, self.ranks)[:, : self.count].to(values.dtype)
        return found if self.outer is None else self.outer.whole(found)

    def mine(self, values: Tensor) -> Tensor:
        return self.piece(values if self.outer is None else self.outer.mine(values))

    def total(self, values: Tensor) -> Tensor:
        found = reduced(values, self.ranks)
        return found if self.outer is None else self.outer.total(found)
