"""Which experts each token goes to, and what keeps them evenly used."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bessemer.models.layers.attention import Context
from bessemer.models.layers.linear import Linear

Scores = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Where the tokens of a batch go.

    Attributes:
        choice: int64 [rows, length, active], experts by number; those from the number of real experts on compute nothing.
        weight: float32 [rows, length, active], the share of each in the output; 0 where it was dropped.
        kept: bool like `choice`, False where an expert had no room left; None: all had.
    """

    choice: Tensor
    weight: Tensor
    kept: Tensor | None


class Seen(NamedTuple):
    """Sums over the tokens of a batch, padding left out, by which balance is judged.

    Attributes:
        balance: 0-d with its graph: for each row, tokens x sum over experts of share chosen x mean score / wanted share; a row
            in balance adds its number of tokens.
        z: 0-d with its graph: squared log of the softmax denominator.
        entropy: 0-d: of each token's distribution over experts, in nats.
        demand: int64 [experts]: how often each was chosen.
        dropped: int64 [experts]: how often it had no room left.
    """

    balance: Tensor
    z: Tensor
    entropy: Tensor
    demand: Tensor
    dropped: Tensor


class Router(nn.Module):
    """Top-k choice of experts by scores of the token, computed in float32 (Shazeer et al. 2017; DeepSeek-AI 2024, "DeepSeek-V3").

    The balance loss is DeepSeek-V3's sequence-wise one: taken over each row, weighted by the row's tokens, so it is a sum over rows
    and the gradient doesn't depend on how they are cut into micro-batches or ranks. A loss over the whole batch (Switch) is
    quadratic in the batch's counts and would depend on it. Capacity is counted over each row for the same reason.

    A bias takes part in the choice and not in the weights. `nudge` moves it once a step against the demand, which
    balances without a gradient (Wang et al. 2024, "Auxiliary-loss-free load balancing").

    Args:
        width: size of the residual stream.
        experts: real experts.
        zero: experts that hand their token on unchanged (LongCat-Flash): numbers from `experts` on.
        active: experts of each token.
        real: real experts that a token should get on average, of `active`.
        scores: softmax over all experts, or each expert's own sigmoid.
        normalise: the chosen experts' weights are made to sum to `scale`; else they are the scores times `scale`.
        rate: how far a nudge goes; 0: no bias.
        capacity: places of each expert in a row, relative to what even use would need; None: no limit. At rest there is none.
    """

    bias: Tensor | None

    def __init__(
        self, width: int, experts: int, *, zero: int, active: int, real: float, scores: Scores, normalise: bool, scale: float, rate: float,
        capacity: float | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.experts, self.zero, self.active, self.scores = experts, zero, active, scores
        self.normalise, self.scale, self.rate, self.capacity = normalise, scale, rate, capacity
        self.real = real
        self.gate = Linear(width, experts + zero, axes=("none", "embed"), role="head")
        self.register_buffer("bias", torch.zeros(experts + zero) if rate else None)

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """The bias of a new model."""
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor, context: Context) -> tuple[Routing, Seen | None]:
        """x: [rows, length, width]. What was seen is None at rest."""
        with torch.autocast(x.device.type, enabled=False):
            logits = nn.functional.linear(x.float(), self.gate.weight.float())
        scores = logits.softmax(-1) if self.scores == "softmax" else logits.sigmoid()
        favour = scores.detach() if self.bias is None else scores.detach() + self.bias
        choice = favour.topk(self.active, dim=-1).indices
        weight = scores.gather(-1, choice)
        if self.normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        weight = weight * self.scale
        kept = self._kept(choice, context) if self.capacity is not None and self.training else None
        if kept is not None:
            weight = torch.where(kept, weight, 0.0)
        return Routing(choice, weight, kept), self._seen(logits, scores, choice, kept, context) if self.training else None

    @torch.no_grad()
    def nudge(self, demand: Tensor) -> None:
        """Moves the bias by what a whole step saw: towards experts that were chosen less than wanted.

        Without zero-computation experts by `rate` up or down (DeepSeek-V3); with them in proportion to what is missing, and only
        for the real ones, whose common level so comes to rest where tokens get as many as wanted (LongCat-Flash).

        Args:
            demand: int64 [experts], summed over micro-batches and ranks.
        """
        if self.bias is None:
            return
        missing = self._wanted(demand.device) - demand / demand.sum().clamp(min=1)
        move = missing if self.zero else missing.sign()
        move[self.experts :] = 0
        self.bias += self.rate * move.to(self.bias)

    @torch.no_grad()
    def _kept(self, choice: Tensor, context: Context) -> Tensor:
        """Whether an expert has room for each of its tokens of a row, first come first served: later tokens change nothing for earlier ones."""
        valid = context.valid
        if context.spread is not None:
            choice, valid = context.spread.whole(choice), None if valid is None else context.spread.whole(valid)
        rows, length, active = choice.shape
        inside = torch.ones(rows, length, dtype=torch.bool, device=choice.device) if valid is None else valid
        count = self.experts + self.zero + 1
        group = torch.where(inside[..., None], choice, count - 1).flatten(1) + count * torch.arange(rows, device=choice.device)[:, None]
        order = group.flatten().argsort(stable=True)
        sizes = torch.zeros(rows * count, dtype=torch.int64, device=group.device).scatter_add_(0, group.flatten(), torch.ones_like(group).flatten())
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group.flatten()[order]]
        assert self.capacity is not None
        room = (inside.sum(1) * (self.capacity * active / self.experts)).ceil()
        kept = ((place.view(rows, length, active) < room[:, None, None]) | (choice >= self.experts)) & inside[..., None]
        return kept if context.spread is None else context.spread.mine(kept)

    def _seen(self, logits: Tensor, scores: Tensor, choice: Tensor, kept: Tensor | None, context: Context) -> Seen:
        valid = context.valid
        inside = torch.ones(choice.shape[:2], dtype=torch.bool, device=choice.device) if valid is None else valid
        share = torch.where(inside[..., None], scores / scores.sum(-1, keepdim=True), 0.0)
        chosen = self._tally(choice, inside[..., None].expand_as(choice))
        sizes = torch.cat((chosen, inside.sum(1, keepdim=True)), 1)
        if context.spread is not None:  # a row's counts are those of all its columns; its scores are summed by whoever sums the terms
            sizes = context.spread.total(sizes)
        used = sizes[:, :-1] / (self.active * sizes[:, -1:].clamp(min=1)) / self._wanted(choice.device)
        log_total = logits.logsumexp(-1)
        dropped = torch.zeros_like(chosen) if kept is None else self._tally(choice, inside[..., None] & ~kept)
        return Seen(
            balance=(used * share.sum(1)).sum(),
            z=torch.where(inside, log_total.square(), 0.0).sum(),
            entropy=torch.special.entr(share.detach()).sum(),
            demand=chosen.sum(0),
            dropped=dropped.sum(0),
        )

    def _wanted(self, device: torch.device) -> Tensor:
        """Each expert's share of all choices when use is as wanted: float32 [experts]."""
        shares = torch.full((self.experts + self.zero,), self.real / self.active / self.experts, device=device)
        if self.zero:
            shares[self.experts :] = (1 - self.real / self.active) / self.zero
        return shares

    def _tally(self, choice: Tensor, counted: Tensor) -> Tensor:
        """How often each expert stands in each row where `counted` is True: int64 [rows, experts]."""
        found = torch.zeros(choice.shape[0], self.experts + self.zero, dtype=torch.int64, device=choice.device)
        return found.scatter_add_(1, choice.flatten(1), counted.flatten(1).to(torch.int64))
