"""A feed-forward part of many experts, of which each token gets a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.batch import Outputs
from bessemer.core.registry import Auto
from bessemer.models.layers.attention import Context
from bessemer.models.layers.grouped import ExpertLinear
from bessemer.models.layers.mlp import MLPName, mlp
from bessemer.models.layers.router import Router, Scores, Seen

Compute = Callable[[Tensor, Tensor], Tensor]
"""Rows [rows, width] sorted by expert and each expert's count, int64 [experts], to rows [rows, width]."""


class Experts(pydantic.BaseModel):
    """The `experts` table of a decoder; `{ count = 16 }` alone gives a layer that computes as much as the dense one.

    Attributes:
        count: experts, shared and zero ones aside.
        active: how many each token gets; auto: a quarter of them, at most 8.
        ffn: width of one expert; auto: such that active and shared ones together are as wide as the dense part.
        shared: experts that every token gets.
        zero: experts that hand their token on unchanged, so that easy tokens cost less (LongCat-Flash).
        real: of the active ones, how many shall be real on average; auto: their share of all.
        dense: how many of the first layers have no experts (DeepSeek-V3 has 3).
        scores: "sigmoid" for each expert alone (DeepSeek-V3) or "softmax" over all.
        normalise: the weights of a token's experts sum to `scale`.
        scale: factor of the weights.
        bias: how far the bias of the choice moves in a step against uneven use; 0: no bias.
        balance: factor of the loss that evens use within each row.
        z: factor of the squared log of the router's softmax denominator (ST-MoE's is 1e-3).
        capacity: places of an expert in a row, relative to even use; tokens beyond are dropped. None: none is dropped.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    count: int = pydantic.Field(ge=1)
    active: int | Auto = "auto"
    ffn: int | Auto = "auto"
    shared: int = pydantic.Field(default=0, ge=0)
    zero: int = pydantic.Field(default=0, ge=0)
    real: float | Auto = "auto"
    dense: int = pydantic.Field(default=0, ge=0)
    scores: Scores = "sigmoid"
    normalise: bool = True
    scale: float = pydantic.Field(default=1.0, gt=0.0)
    bias: float = pydantic.Field(default=1e-3, ge=0.0)
    balance: float = pydantic.Field(default=1e-4, ge=0.0)
    z: float = pydantic.Field(default=0.0, ge=0.0)
    capacity: float | None = pydantic.Field(default=None, gt=0.0)


class MixtureOfExperts(nn.Module):
    """The sum of a token's chosen experts' outputs, weighted by their scores, and of the shared experts' (Shazeer et al. 2017, "Outrageously large neural networks"; DeepSeekMoE, Dai et al. 2024).

    Args:
        width: size of the residual stream.
        kind: what each expert is.
        o: the resolved options of `Experts`.

    Attributes:
        seen: what the router saw in the last forward pass in training, for the family to take away.
        exchange: computes rows sorted by expert where their experts are on other ranks; None: they are all here.
    """

    seen: Seen | None

    def __init__(self, width: int, kind: MLPName, o: Mapping[str, Any]) -> None:
        super().__init__()
        self.count, self.zero, self.active, self.real, self.kind = o["count"], o["zero"], o["active"], o["real"], kind
        self.factors = {"balance": o["balance"], "z": o["z"]}
        names = ("zero", "active", "real", "scores", "normalise", "scale", "capacity")
        self.router = Router(width, self.count, rate=o["bias"], **{name: o[name] for name in names})
        parts = (o["ffn"], o["ffn"]) if kind == "swiglu" else (o["ffn"],)
        self.up = ExpertLinear(self.count, width, sum(parts), axes=("ffn", "embed"), parts=parts)
        self.down = ExpertLinear(self.count, o["ffn"], width, axes=("embed", "ffn"), residual=True)
        self.shared = mlp(kind, width, o["ffn"] * o["shared"], False) if o["shared"] else None
        self.exchange: Callable[[Tensor, Tensor, Compute], Tensor] | None = None
        self.seen = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: [rows, length, width], to the same shape."""
        (choice, weight, kept), self.seen = self.router(x, context)
        flat, choice, weight = x.flatten(0, 1), choice.flatten(0, 1), weight.flatten(0, 1)
        expert = choice.flatten()
        if kept is not None:
            expert = torch.where(kept.flatten(), expert, self.count)
        if self.zero:
            expert = expert.clamp(max=self.count)
        order = expert.argsort(stable=True)
        counts = torch.zeros(self.count + 1, dtype=torch.int64, device=x.device).scatter_add_(0, expert, torch.ones_like(expert))[: self.count]
        if self.zero or kept is not None:  # what no expert computes has sorted to the end
            order = self.computed(order, counts)
        rows = _Pick.apply(flat, order, self.active)
        found = self.compute(rows, counts) if self.exchange is None else self.exchange(rows, counts, self.compute)
        mixed = (_place(found, order, len(expert)).view(*choice.shape, -1) * weight[..., None]).sum(1)
        if self.zero:
            mixed = mixed + flat * torch.where(choice >= self.count, weight, 0.0).sum(-1, keepdim=True)
        mixed = mixed.to(found.dtype).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    def computed(self, order: Tensor, counts: Tensor) -> Tensor:
        """The first of `order`: those rows that an expert computes."""
        return order[: int(counts.sum())]

    def compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        """The experts' own work; see `Compute`."""
        hidden = self.up(rows, counts)
        if self.kind == "swiglu":
            gate, up = hidden.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up, counts)
        return self.down(F.gelu(hidden, approximate="tanh" if self.kind == "gelu_tanh" else "none"), counts)

    def active_weights(self) -> float:
        """How many weights of its experts a token is multiplied with, on average; router and shared experts aside."""
        return (self.up.weight.numel() + self.down.weight.numel()) / self.count * self.real


def mixtures(model: nn.Module) -> dict[str, MixtureOfExperts]:
    """A model's layers of experts by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}


def report(model: nn.Module, outputs: Outputs) -> None:
    """Takes what the layers of experts have seen and adds it to the outputs.

    Terms, counted over "tokens": `experts/balance` (1 where every row's experts are evenly used) and `experts/z` where their factors
    are not 0, and the figures `experts/entropy` and `experts/dropped` (the share of choices); each is the mean over layers, and the
    first two enter the loss once for each layer. Counts: "<layer>", int64 [2, experts], choices and drops of each expert.
    """
    found = {name: (layer, layer.seen) for name, layer in mixtures(model).items()}
    sums: dict[str, Tensor] = {}
    for name, (layer, seen) in found.items():
        if seen is None:
            return
        layer.seen = None
        outputs.counts[name] = torch.stack((seen.demand, seen.dropped))
        figures = {"balance": seen.balance, "z": seen.z, "entropy": seen.entropy, "dropped": seen.dropped.sum() / layer.active}
        for key, value in figures.items():
            sums[key] = sums[key] + value if key in sums else value
    layers = getattr(model, "layers_of_experts", len(found))  # a stage of a pipeline sees only its own
    for key, value in sums.items():
        factor: float = next(iter(found.values()))[0].factors.get(key, 0.0)
        if factor or key in ("entropy", "dropped"):
            outputs.terms.add(f"experts/{key}", value / layers, over="tokens", scale=factor * layers)


def nudge(model: nn.Module, counts: Mapping[str, Tensor]) -> None:
    """Moves every router's bias by the counts of a whole step, as `report` named them, summed over micro-batches and ranks."""
    for name, layer in mixtures(model).items():
        if name in counts:
            layer.router.nudge(counts[name][0])


def resolve(given: Experts | Mapping[str, Any] | None, ffn: int) -> dict[str, Any] | None:
    """The table with every "auto" worked out, as plain values.

    Args:
        ffn: width of the dense part.

    Raises:
        pydantic.ValidationError: a mapping that is no such table.
    """
    if given is None:
        return None
    o = (given if isinstance(given, Experts) else Experts.model_validate(given)).model_dump()
    if o["active"] == "auto":
        o["active"] = max(1, min(8, o["count"] // 4))
    if o["real"] == "auto":
        o["real"] = o["active"] * o["count"] / (o["count"] + o["zero"])
    if o["ffn"] == "auto":
        o["ffn"] = max(16, round(ffn / max(1.0, o["real"] + o["shared"]) / 16) * 16)
    return o


def problem(o: Mapping[str, Any], depth: int) -> tuple[str, str] | None:
    """The key and what is wrong with it in a resolved table, or None."""
    if not 1 <= o["active"] <= o["count"] + o["zero"]:
        return "active", f"a token can get 1 to {o['count'] + o['zero']} experts, and {o['active']} are asked for"
    if o["ffn"] < 1:
        return "ffn", f"{o['ffn']} is too small; it must be at least 1"
    if not 0 < o["real"] <= min(o["active"], o["count"]) or (o["real"] == o["active"]) != (o["zero"] == 0):
        return "real", f"of {o['active']} active experts {o['real']} can't be real on average with {o['zero']} that compute nothing"
    if o["dense"] >= depth:
        return "dense", f"{o['dense']} dense layers leave none of {depth} for experts"
    return None


class _Pick(torch.autograd.Function):
    """Rows `order // active` of x; its gradient sums the copies of a row in one order on every device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, active: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.shape, ctx.active = x.shape, active
        return x.index_select(0, order // active)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        rows, width = ctx.shape
        return _place(grads[0], order, rows * ctx.active).view(rows, ctx.active, width).sum(1), None, None


def _place(rows: Tensor, order: Tensor, count: int) -> Tensor:
    """Rows put back where they came from, zeros where none did: [count, width]."""
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, order, rows)
