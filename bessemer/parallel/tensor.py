"""The tensor axis: each matrix product shared, activations between blocks cut along the columns (Korthikanti et al. 2022).

Outside the blocks every rank of the axis does the same and holds whole gradients; only there are hidden states whole. Entering the first
block each takes its columns, leaving the last they are joined. Inside, norms and residual stream work on a rank's own columns. A product whose
outputs are cut (query, key, value; gate, up) gathers all columns first, one whose inputs are cut sums and scatters after. The head and
the embedding are cut along the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from bessemer.core import shards
from bessemer.core.collectives import Along, along, gather, own, reduced, scatter_sum, sum_backward, sum_forward, whole
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World
from bessemer.core.products import linear
from bessemer.models.layers.attention import Attention
from bessemer.models.layers.embedding import Embedding
from bessemer.models.layers.experts import MixtureOfExperts
from bessemer.models.layers.grouped import ExpertLinear
from bessemer.models.layers.head import Head, Share
from bessemer.models.layers.linear import Linear
from bessemer.models.layers.norm import RMSNorm
from bessemer.models.reparameterized import Matrix, Reparameterized
from bessemer.parallel.expert import SharedMixture
from bessemer.parallel.overlap import gather_product, product_scatter

CUT = {"heads", "ffn", "vocabulary"}
"""The logical axes that lie along the mesh axis `tensor`; all others are whole on every rank."""


class Columns:
    """How many columns the rows of this forward pass have, padding not counted.

    Args:
        pieces: in how many pieces they travel and are computed with (parallel/overlap.py).
    """

    count = 0

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def note(self, model: nn.Module, given: tuple[Any, ...]) -> None:
        """A forward pre-hook of the model."""
        batch = given[0]
        self.count = (batch if isinstance(batch, Tensor) else batch.tokens).shape[1]

    def only(self, x: Tensor) -> Tensor:
        """x [rows, columns, width] without the padding."""
        return x if x.shape[1] == self.count else x[:, : self.count].contiguous()


class _Shared:
    """What layers that share their work have: the ranks of the axis and the columns of the pass."""

    ranks: Along
    columns: Columns


class ColumnLinear(Linear, _Shared):
    """A product whose outputs are cut: gathers the columns of all ranks, for its own outputs."""

    def forward(self, input: Tensor) -> Tensor:
        if self.columns.pieces == 1:
            return linear(self.columns.only(gather(input, 1, self.ranks)), self.weight, self.bias)
        found = self.columns.only(gather_product(input, self.weight, self.ranks, self.columns.pieces))
        return found if self.bias is None else found + self.bias.to(found.dtype)


class RowLinear(Linear, _Shared):
    """A product whose inputs are cut: the ranks' results are summed, each keeping its columns."""

    def forward(self, input: Tensor) -> Tensor:
        if self.columns.pieces == 1:
            summed = scatter_sum(linear(input, self.weight), 1, self.ranks)
        else:
            summed = product_scatter(input, self.weight, self.ranks, self.columns.pieces)
        return summed if self.bias is None else summed + self.bias.to(summed.dtype)


class ColumnReparameterized(Reparameterized, _Shared):
    """The same for a weight made of something else, of which each rank has its outputs' part."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.columns.only(gather(x, 1, self.ranks)))

    def members(self) -> Iterator[tuple[Any, Tensor | None]]:
        parts = [part // self.ranks.size for part in self.parts]
        yield from zip(self.matrices, [None] * len(parts) if self.offset is None else self.offset.split(parts), strict=True)


class RowReparameterized(Reparameterized, _Shared):
    """The same where the inputs are cut."""

    def forward(self, x: Tensor) -> Tensor:
        pieces = [matrix.product(x) for matrix, _ in self.members()]
        summed = scatter_sum(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1), 1, self.ranks)
        bias = self.bias
        return summed if bias is None else summed + bias.to(summed.dtype)


class VocabularyEmbedding(Embedding, _Shared):
    """A table of which each rank holds some rows; who has not the row adds zero."""

    vocabulary: int
    width: int

    def forward(self, indices: Tensor) -> Tensor:
        start, stop = self.ranks.span(self.vocabulary)
        mine = (indices >= start) & (indices < stop)
        found = (
            F.embedding(torch.where(mine, indices - start, 0), self.weight) if stop > start else self.weight.sum().expand(*indices.shape, self.width)
        )
        return sum_forward(found * mine[..., None], self.ranks)


class VocabularyHead(Head, _Shared):
    """A head of which each rank holds some tokens; objectives take `share()`, everything else gets whole logits."""

    vocabulary: int

    def forward(self, input: Tensor) -> Tensor:
        logits = linear(sum_backward(input, self.ranks), self.weight, self.bias)
        missing = self.ranks.piece(self.vocabulary) - logits.shape[-1]
        return whole(F.pad(logits, (0, missing)), -1, self.ranks)[..., : self.vocabulary]

    def share(self) -> Share:
        return Share(self.weight, self.bias, self.ranks.span(self.vocabulary)[0], self.ranks)


class WholeRMSNorm(RMSNorm, _Shared):
    """A norm over all heads, of which each rank has some: squares are summed over the ranks."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = sum_backward(sum_forward(wide.square().sum(-1, keepdim=True), self.ranks), self.ranks)
        wide = wide * torch.rsqrt(squares / (x.shape[-1] * self.ranks.size) + self.eps)
        return (wide * self.weight).to(x.dtype)


def runs(model: Any) -> Iterator[list[nn.Module]]:
    """The chains of blocks between which hidden states are cut along the columns."""
    if len(model.blocks):
        yield list(model.blocks)
    yield from ([module.block] for module in getattr(model, "ahead", ()))


def nested(model: Any) -> Iterator[list[nn.Module]]:
    """The chains of models inside the model, which belong to single tasks."""
    for part in getattr(model, "tasks", nn.ModuleDict()).modules():
        if isinstance(getattr(part, "blocks", None), nn.ModuleList):
            yield from runs(part)


def _undivided(model: Any) -> set[int]:
    """The products of single tasks outside blocks, by identity: what they read is whole on every rank, so every rank does them whole."""
    inside = {id(part) for chain in nested(model) for block in chain for part in block.modules()}
    parts = getattr(model, "tasks", nn.ModuleDict()).modules()
    kinds = Linear | Reparameterized | Matrix
    return {id(part) for part in parts if isinstance(part, kinds) and not isinstance(part, Head) and id(part) not in inside}


def check(model: Any, count: int) -> None:
    """Refuses a model whose sizes `count` ranks can't share.

    Raises:
        RecipeError: naming the size.
    """
    undivided = _undivided(model)
    for module in model.modules():
        if id(module) in undivided:
            continue
        sizes = {"query heads": module.heads, "key heads": module.kv_heads} if isinstance(module, Attention) else {}
        axes = module.plain_axes if isinstance(module, Reparameterized) else module.axes["weight"] if isinstance(module, Linear) else ()
        if "vocabulary" in axes and isinstance(module, Reparameterized):
            raise RecipeError(
                "the head's weight is made of other parameters, and ranks can't share its vocabulary",
                key="adapt.match",
                mend="leave the head out, or mesh.tensor = 1",
            )
        if "ffn" in axes:
            size = (module.outputs, module.inputs) if isinstance(module, Reparameterized) else module.weight.shape
            sizes = {"elements of the feed-forward part": size[axes.index("ffn")] // len(module.parts)}
        for what, size in sizes.items():
            if size % count:
                raise RecipeError(f"{size} {what} can't be shared evenly by {count} ranks", key="mesh.tensor", mend=f"choose a divisor of {size}")


def apply(model: Any, world: World, chains: list[list[nn.Module]], pieces: int) -> tuple[list[nn.Parameter], dict[str, tuple[int, ...]]]:
    """Cuts the model along the axis, in place.

    Args:
        chains: of blocks between which hidden states are cut along the columns.
        pieces: in how many pieces columns travel.

    Returns:
        The parameters whose gradients each rank has only for its own columns or heads; and the parts of stacked weights by name.

    Raises:
        RecipeError: its sizes can't be shared.
    """
    count = world.count("tensor")
    check(model, count)
    mesh, ranks, columns = world.parameters["tensor"], along(world.group("tensor")), Columns(pieces)
    model.register_forward_pre_hook(columns.note)
    inside = {id(part) for chain in chains for block in chain for part in block.modules()}
    names = {id(module): name for name, module in model.named_modules()}
    made: dict[int, nn.Parameter] = {}
    partial, parts, undivided = [], {}, _undivided(model)
    for module in list(model.modules()):
        if isinstance(module, ExpertLinear):  # these lie on a folding of their own: parallel/expert.py
            continue
        divided = {} if id(module) in undivided else _take_part(module, ranks, columns)
        for name, parameter in list(module.named_parameters(recurse=False)):
            stacked = getattr(module, "parts", ()) if isinstance(module, Linear | Reparameterized) and divided.get(name) == 0 else ()
            if id(parameter) not in made:
                made[id(parameter)] = _cut(parameter, mesh, divided.get(name), stacked)
            module.register_parameter(name, made[id(parameter)])
            if len(stacked) > 1:
                parts[f"{names[id(module)]}.{name}".lstrip(".")] = tuple(stacked)
            if id(module) in inside and name not in divided and not parameter.is_meta:
                partial.append(made[id(parameter)])
        _see_local(module)
    for run in chains:
        run[0].register_forward_pre_hook(lambda _, given: (own(given[0], 1, ranks), *given[1:]))
        run[-1].register_forward_hook(lambda _, given, found: columns.only(whole(found, 1, ranks)))
    return partial, parts


def _take_part(module: Any, ranks: Along, columns: Columns) -> dict[str, int]:
    """Gives a layer the work of one rank, and says along which dimension its parameters are cut, by name."""
    axes = getattr(module, "axes", {})
    divided = {name: next(d for d, axis in enumerate(found) if axis in CUT) for name, found in axes.items() if CUT & set(found)}
    divided = {name: dim for name, dim in divided.items() if getattr(module, name, None) is not None}
    if isinstance(module, MixtureOfExperts):
        module.__class__, module.ranks, module.columns = SharedMixture, ranks, columns  # type: ignore[assignment]
    if isinstance(module, Attention):
        module.heads, module.kv_heads = module.heads // ranks.size, module.kv_heads // ranks.size
        module.parts = tuple(part // ranks.size for part in module.parts)  # type: ignore[assignment]
    if isinstance(module, Reparameterized):
        dim = next((d for d, axis in enumerate(module.plain_axes) if axis in CUT), None)
        if dim is None:
            return {}
        for matrix, _ in module.members():
            matrix.share(dim, *ranks.span((matrix.outputs, matrix.inputs)[dim]), partial(reduced, ranks=ranks))
        module.__class__ = (ColumnReparameterized, RowReparameterized)[dim]
        module.__dict__.update(ranks=ranks, columns=columns)
        return divided
    if isinstance(module, Matrix):
        return divided
    kind = _kind(module, divided)
    if kind is not None:
        if isinstance(module, Embedding | Head):
            module.vocabulary, module.width = module.weight.shape  # type: ignore[assignment]
        module.__class__, module.ranks, module.columns = kind, ranks, columns
    return divided


def _kind(module: nn.Module, divided: dict[str, int]) -> type | None:
    if not divided:
        return None
    if isinstance(module, Head):
        return VocabularyHead
    if isinstance(module, Linear):
        return ColumnLinear if divided["weight"] == 0 else RowLinear
    if isinstance(module, Embedding):
        return VocabularyEmbedding
    if isinstance(module, RMSNorm):
        return WholeRMSNorm
    raise RecipeError(f"a {type(module).__name__} has no way of being shared by ranks", key="mesh.tensor")


def _cut(parameter: nn.Parameter, mesh: DeviceMesh, dim: int | None, parts: tuple[int, ...]) -> nn.Parameter:
    if parameter.is_meta:  # of another stage
        return parameter
    return nn.Parameter(shards.cut(parameter.detach(), mesh, dim, parts=parts), requires_grad=parameter.requires_grad)


def _see_local(module: nn.Module) -> None:
    """Lets a layer's own code see this rank's pieces, while everyone else sees whole parameters' DTensors."""
    names = tuple(name for name, _ in module.named_parameters(recurse=False))
    if names:
        kind: Any = type(module)
        module.__class__ = _seeing(kind, names)


@cache
def _seeing(kind: Any, names: tuple[str, ...]) -> type:
    """One class for all alike: each of its own would be compiled by itself."""
    return type(kind.__name__, (kind,), {name: property(_piece(name)) for name in names} | {"__module__": kind.__module__})


def _piece(name: str) -> Any:
    def piece(module: nn.Module) -> Any:
        parameter: Any = module._parameters[name]  # plain while its layer has it whole; sharded along data too between steps, not to be computed with
        return parameter.to_local() if isinstance(parameter, DTensor) and parameter.device_mesh.ndim == 1 else parameter

    return piece
