"""First layers that move their activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core import shards
from bessemer.core.errors import RecipeError
from bessemer.core.progress import Progress
from bessemer.core.ranges import Positive
from bessemer.models.layers.embedding import Embedding
from bessemer.optim._probe import Probe
from bessemer.optim.around._around import Around, Given


class Tract(Around):
    """Moves first layers so that their outputs, not their weights, take a gradient step, in closed form (Petersen et al. 2024, TrAct).

    Claim: vision models reach the same accuracy in 1.25 to 4 times fewer steps.
    A linear layer's gradient G becomes G (X^T X / b + ridge I)^-1, X [b, inputs] being all inputs of the global batch; a table's rows are
    inputs of which one is 1, so row i is divided by its share of the indices plus `ridge`. Padding is no input. Name the layers by `match` or `role`.

    Args:
        ridge: lambda in the paper.
    """

    sharded = True

    def __init__(self, params: Any, model: nn.Module, *, ridge: Positive = 0.1) -> None:
        self.ridge = ridge
        super().__init__(params, model)
        options = getattr(model, "options", {})
        if "embed.weight" in self.everywhere and (options.get("tied") or (options.get("ahead") and any(p.is_meta for p in model.parameters()))):
            raise RecipeError(
                "'embed.weight' is also the head's, or looked up on two stages, and the correction belongs to the lookups of one table",
                key="around.tract",
                mend="model.tied = false, and with model.ahead mesh.pipe = 1",
            )
        kinds = nn.Linear | nn.Embedding | Embedding
        owners: dict[Any, nn.Module] = {m._parameters["weight"]: m for m in model.modules() if isinstance(m, kinds)}
        self.given = Given(model)
        self.seen: dict[Tensor, Tensor] = {}
        self.counts: dict[Tensor, float] = {}
        for parameter, name in self.names.items():
            if parameter not in owners:
                raise RecipeError(
                    f"'{name}' is the weight of no linear layer and of no table", key="around.tract", mend='match = "embed.weight", for example'
                )
            if not _reaches(parameter, table=not isinstance(owners[parameter], nn.Linear)):
                raise RecipeError(
                    f"'{name}' is cut along its inputs, or its inputs are cut, which are corrected together",
                    key="around.tract",
                    mend="mesh.tensor = 1, or another layer",
                )
            owners[parameter].register_forward_pre_hook(self._watch(parameter))

    def begin(self, progress: Progress) -> None:
        """Inputs are gathered anew."""
        self.seen, self.counts = {}, {}

    @torch.no_grad()
    def prepare(self, probe: Probe) -> None:
        """Replaces the gradients."""
        for parameter in self.names:
            if parameter.grad is None or parameter not in self.seen:
                continue
            gram = probe.total(self.seen[parameter])
            count = float(probe.total(torch.tensor(self.counts[parameter], dtype=torch.float64, device=gram.device)))
            corrected_in_place(parameter.grad, gram / max(count, 1.0), self.ridge)
        self.begin(probe.progress)

    def _watch(self, parameter: Tensor) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and torch.is_grad_enabled():
                found = inputs[0].detach()
                real = self.given.tokens(found) if found.ndim == (3 if found.is_floating_point() else 2) else None
                found = found if real is None else found[real]
                if found.is_floating_point():
                    rows = found.reshape(-1, found.shape[-1]).float()
                    gram, count = rows.mT @ rows, rows.shape[0]
                else:
                    gram, count = torch.bincount(found.reshape(-1), minlength=parameter.shape[0]).float(), found.numel()
                self.seen[parameter] = self.seen[parameter] + gram if parameter in self.seen else gram
                self.counts[parameter] = self.counts.get(parameter, 0.0) + count

        return watch


def _reaches(parameter: Tensor, table: bool) -> bool:
    """Whether a rank sees all inputs of the outputs that lie on it."""
    if not isinstance(parameter, DTensor):
        return True
    names = parameter.device_mesh.mesh_dim_names or ()
    cut = [(name, getattr(placed, "dim", None)) for name, placed in zip(names, parameter.placements, strict=True) if not placed.is_replicate()]
    return all(dim == 0 and (table or name in shards.DATA) for name, dim in cut)


def corrected_in_place(gradient: Tensor, gram: Tensor, ridge: float) -> None:
    """The same in place; of a sharded gradient the rows that lie here, for rows of a linear layer's are corrected one by one."""
    piece = shards.local(gradient)
    if isinstance(gradient, DTensor) and gram.ndim == 1:
        gram = gram[shards.place(gradient, list(gradient.device_mesh.get_coordinate() or ()))[0]]
    piece.copy_(corrected(piece, gram, ridge))


def corrected(gradient: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """The gradient with the inputs' second moment taken out.

    Args:
        gradient: [outputs, inputs] of a linear layer, or [indices, width] of a table.
        gram: X^T X / b, [inputs, inputs]; of a table its diagonal, [indices].
    """
    if gram.ndim == 1:
        return gradient / (gram[:, None] + ridge).to(gradient.dtype)
    whole = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(whole, gradient.to(whole.dtype).mT).mT.to(gradient.dtype).contiguous()
