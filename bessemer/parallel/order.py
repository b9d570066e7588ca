"""The one order in which a model is spread over the mesh; every step is the identity where its axis has one rank."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import torch

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import TOKENS, World
from bessemer.models.layers import native_attention
from bessemer.parallel import cost, data, expert, pipeline, tensor
from bessemer.parallel import remat as remats
from bessemer.parallel.context.columns import Axis, Method
from bessemer.parallel.layout import Layout


class Parallel(pydantic.BaseModel):
    """A recipe's `parallel` table: what the sizes of the mesh don't say.

    Attributes:
        shard: what is shared out along the data axis: "auto", "full", "grad", "state", "levels" or "none" (parallel/data.py).
        pair: for "levels": how many neighbours along data x context share out parameters.
        node: for "levels": how many share out gradients.
        context: how attention works across the columns of the ranks (parallel/context/columns.py).
        pipe: the schedule of a pipeline: "gpipe", "1f1b", "interleaved", "zb1p", "zbv" or "dualpipev" (parallel/pipeline.py).
        cuts: where stages of a pipeline begin: by costs "counted" or "measured", or the first block of each but the first (parallel/cost.py).
        pieces: in how many pieces activations travel along tensor, so that one travels while another is computed (parallel/overlap.py).
        remat: which activations are computed again in the backward pass: "none", "full", "selective" or "budget" (parallel/remat.py).
        keep: the kinds of operators whose results "selective" keeps: "products", "attention", "experts" and "collectives".
        budget: the share of the activations' memory that "budget" may use.
        gather: whether parameters travel in the type of the matrix products ("compute") or in their own ("own").
        exchange: how ranks of one machine without accelerators hand each other parameters and gradients: through "memory" they have in
            common, where they have it, or as others do, through the "network".
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    shard: data.Shard = "full"
    pair: int = pydantic.Field(default=2, ge=1)
    node: int = pydantic.Field(default=8, ge=1)
    context: Method = "auto"
    pipe: pipeline.Schedule = "1f1b"
    cuts: cost.Cuts = "counted"
    pieces: int = pydantic.Field(default=1, ge=1)
    remat: remats.Remat = "none"
    keep: list[remats.Kind] = ["products", "attention", "experts", "collectives"]
    budget: float = pydantic.Field(default=0.5, ge=0.0, le=1.0)
    gather: str = pydantic.Field(default="own", pattern="^(own|compute)$")
    exchange: Literal["memory", "network"] = "memory"


def spread(model: Any, world: World, options: Parallel, *, compile: bool = False, dtype: torch.dtype = torch.float32) -> Layout:
    """Spreads a model over the mesh: pipeline, tensor, expert, context, remat, compile, data.

    Args:
        model: whole, the same on every rank; changed in place.
        compile: compile each kind of block once.
        dtype: what matrix products are computed in.

    Raises:
        RecipeError: the model's sizes don't allow this mesh.
    """
    options = options.model_copy(update={"shard": data.chosen(model, world, options.shard)})
    _check_modalities(model, world)
    _check_remat(model, world, options)
    _check_pieces(world, options)
    layout = Layout(world, model, in_memory=options.exchange == "memory")
    inner: list[torch.nn.Parameter] = []
    chains = list(tensor.runs(model))
    if world.count("pipe") > 1:
        layout.stages = pipeline.Pipeline(model, world, options.pipe, options.cuts, options.remat == "full", dtype)
        chains = layout.stages.runs
        _check_stages(layout.stages, world, options)
    routed = world.count("expert") * world.count("expert_tensor") > 1
    if world.count("tensor") > 1 or (routed and not data.wanted(world, options.shard)):  # optimizers want all parameters of one kind
        inner, layout.parts = tensor.apply(model, world, [*chains, *tensor.nested(model)], options.pieces)
    if routed or (world.count("tensor") > 1 and expert.products(model)):
        layout.parts |= expert.apply(model, world)
    if world.count("context") > 1:
        layout.columns = Axis(world.group("context"), options.context)
    remats.apply((block for chain in chains for block in chain), options.remat, options.keep, options.budget, compile)
    if compile:
        native_attention.prepare()
        for block in (block for block in model.blocks if any(block in chain for chain in chains)):
            block.compile(dynamic=False)
    if data.wanted(world, options.shard):
        names = {id(p): name for name, p in model.named_parameters()}
        inner_names = {names[id(p)] for p in inner}
        travelling = dtype if options.gather == "compute" and dtype != torch.float32 else None
        layout.guides = data.apply(model, world, options.shard, travelling, chains, layout.roots, (options.pair, options.node), layout.in_memory)
        inner = [p for name, p in model.named_parameters() if name in inner_names]
        layout.gathered, layout.unsharded = options.shard in ("grad", "state"), options.shard == "state"
        outer: list[torch.nn.Parameter] = []
    else:
        experts = [p for product in expert.products(model) for p in product.parameters()]
        held = {id(p) for p in experts}
        outer = [p for p in model.parameters() if not p.is_meta and world.count(*TOKENS) > 1 and id(p) not in held]
        if world.count(*expert.AXES) > 1:
            layout.partial[expert.AXES] = experts
    _leave_partial(layout, inner, outer)
    return layout


def _check_remat(model: Any, world: World, options: Parallel) -> None:
    if options.remat == "selective" and data.wanted(world, options.shard) and expert.products(model):
        problem = "selective recomputation can't look into layers of experts that are sharded by themselves"
        raise RecipeError(problem, key="parallel.remat", mend='use remat = "full", or parallel.shard = "none"')


def _check_modalities(model: Any, world: World) -> None:
    if getattr(model, "options", {}).get("modalities") and world.count("tensor") > 1:
        problem = "feed-forward parts of single modalities read columns one by one, and the tensor axis cuts them"
        raise RecipeError(problem, key="mesh.tensor", mend="use mesh.tensor = 1, or model.modalities = []")


def _check_pieces(world: World, options: Parallel) -> None:
    if options.pieces > 1 and world.count("tensor") == 1:
        problem = f"activations can't travel along tensor in {options.pieces} pieces, as one rank has them all"
        raise RecipeError(problem, key="parallel.pieces", mend="use pieces = 1, or mesh.tensor of 2 or more")


def _check_stages(stages: pipeline.Pipeline, world: World, options: Parallel) -> None:
    if stages.kind.folded and (stages.model.options["tied"] or len(stages.model.ahead)) and data.wanted(world, options.shard):
        problem = "the first and the last stage of a V lie on one rank, and can't each shard the embedding they share"
        raise RecipeError(problem, key="parallel.pipe", mend='use parallel.shard = "none", or another schedule')
    if stages.kind.split and stages.model.options["tied"] and len(stages.model.ahead):
        problem = "the last stage reads one table as head and as embedding of further tokens, and this schedule cuts a stage's backward pass in two"
        raise RecipeError(problem, key="parallel.pipe", mend='use "1f1b" or "interleaved", or model.tied = false')


def _leave_partial(layout: Layout, inner: list[torch.nn.Parameter], outer: list[torch.nn.Parameter]) -> None:
    """Notes which gradients are still to be summed along which axes: `inner` over tensor, `outer` over tokens, or both."""
    within = {id(p) for p in inner}
    over = {id(p) for p in outer}
    for parameter in layout.model.parameters():
        axes = (TOKENS if id(parameter) in over else ()) + (("tensor",) if id(parameter) in within else ())
        if axes:
            layout.partial.setdefault(axes, []).append(parameter)
