"""Attention logits kept in bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core import shards
from bessemer.core.errors import RecipeError
from bessemer.core.progress import Progress
from bessemer.core.ranges import Positive
from bessemer.models.layers.attention import Attention
from bessemer.models.reparameterized import Reparameterized
from bessemer.optim._probe import Probe
from bessemer.optim.around._around import Around


class QkClip(Around):
    """Scales the query and key weights of every head whose largest logit passed a limit; with muon this is MuonClip (Kimi K2 2025).

    Claim: 15.5 trillion tokens without a loss spike.
    After the update, with s the head's largest q . k / sqrt(head size) in the step's forward pass: queries and keys each times
    sqrt(limit / s). Where heads share keys the queries alone take the whole factor, as the paper does with the shared rotary part.
    Finding s costs one more product of queries and keys, and where columns are cut gathers the keys. No state.

    Args:
        limit: of the logits; tau in the paper.
    """

    sharded = True
    needs_gradients = False

    def __init__(self, params: Any, model: nn.Module, *, limit: Positive = 100.0) -> None:
        self.limit = limit
        super().__init__(params, model)
        self.layers = [module for module in model.modules() if isinstance(module, Attention) and not module.qkv.weight.is_meta]  # others' stages
        if any(layer.q_norm is not None for layer in self.layers):
            raise RecipeError(
                "queries and keys are normalised in this model, so scaling their weights changes nothing",
                key="around.qk_clip",
                mend='model.qk_norm = "none", or leave it out: the norms bound the logits themselves',
            )
        if any(isinstance(layer.qkv, Reparameterized) for layer in self.layers):
            raise RecipeError(
                "the weights of queries and keys are made of other parameters in this model, and can't be scaled by themselves",
                key="around.qk_clip",
                mend='leave it out, or have adapt.match leave "*.qkv" as it is',
            )
        self.peaks = [torch.full((layer.heads,), -torch.inf, device=layer.qkv.weight.device) for layer in self.layers]
        for layer, peaks in zip(self.layers, self.peaks, strict=True):
            layer.peaks = peaks
        self.found: list[Tensor] = []

    def begin(self, progress: Progress) -> None:
        """Nothing is seen yet."""
        self.found = []
        for peaks in self.peaks:
            peaks.fill_(-torch.inf)

    def prepare(self, probe: Probe) -> None:
        """Takes down what the forward pass saw of all heads."""
        self.found = [probe.every(probe.largest(peaks.clone())) for peaks in self.peaks]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Scales what passed the limit."""
        for layer, peaks in zip(self.layers, self.found, strict=False):
            factors = torch.where(peaks > self.limit, self.limit / peaks, torch.ones_like(peaks))
            if bool((factors < 1.0).any()):
                for parameter in layer.qkv.parameters(recurse=False):
                    if parameter.requires_grad:
                        _scale(layer, parameter, factors)


def _scale(layer: Attention, parameter: Tensor, factors: Tensor) -> None:
    """Multiplies the rows of `parameter` that make each head's queries, and keys where they are its own; of a sharded one those that lie here."""
    shared = layer.heads != layer.kv_heads
    parts = [part * len(factors) // layer.heads for part in layer.parts]  # the layer's are those of this rank's heads
    rows = torch.ones(sum(parts), dtype=torch.float64, device=factors.device)
    query, key, _ = rows.split(parts)
    each = factors.double().repeat_interleave(layer.head_size)
    query.copy_(each if shared else each.sqrt())
    if not shared:
        key.copy_(each.sqrt())
    piece = shards.local(parameter)
    if isinstance(parameter, DTensor):
        rows = rows[shards.place(parameter, list(parameter.device_mesh.get_coordinate() or ()), parts)[0]]
    piece.mul_(rows.to(piece.dtype).view(-1, *[1] * (piece.ndim - 1)))
