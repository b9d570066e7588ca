"""Adversarial examples from stale weights, for large batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bessemer.core.errors import RecipeError
from bessemer.core.ranges import NonNegative, Share
from bessemer.optim._probe import Probe, weights
from bessemer.optim.around._around import Around, Given


class ConAdv(Around):
    """Mixes in the gradient on inputs perturbed against the previous step's weights (Liu et al. 2021, ConAdv).

    Claim: ResNet-50 at a batch of 96K with 75.3% accuracy.
    A step's perturbation asks nothing of the update before it, so large machines can compute it beside that update; the result is
    the same. Inputs are the embedded tokens, perturbed by the sign of the loss's gradient there. As in the paper, which keeps a second set of
    batch-norm statistics for perturbed inputs, both losses count; layer norms need no second set. A step takes three times the products.
    State: two numbers per parameter, the weights of this step and of the one before.

    Args:
        size: of the perturbation, in units of the root mean square of the inputs that a row's tokens are.
        share: of the perturbed inputs' gradient in the mixture.
    """

    sharded = True
    copies = 2

    def __init__(self, params: Any, model: nn.Module, *, size: NonNegative = 0.1, share: Share = 0.5) -> None:
        self.size, self.share = size, share
        super().__init__(params, model)
        embed = getattr(model, "embed", None)
        if not isinstance(embed, nn.Module):
            raise RecipeError("perturbs what the model's `embed` gives, and this model has none", key="around.con_adv")
        self.embed = embed

    def prepare(self, probe: Probe) -> None:
        """gradient = (1 - share) gradient + share gradient(perturbed)."""
        stale = {p: self.state[p]["stale"] for p in self.names if "stale" in self.state.get(p, {})}
        with weights(stale):
            pushes = self.perturbations(probe)
        calls = iter(pushes)
        hook = self.embed.register_forward_hook(lambda module, inputs, output: output + next(calls))
        try:
            against = probe.gradients(list(self.names))
        finally:
            hook.remove()
        for parameter, gradient in zip(self.names, against, strict=True):
            if parameter.grad is not None:
                parameter.grad.lerp_(gradient, self.share)

    def perturbations(self, probe: Probe) -> list[Tensor]:
        """One for each time the inputs are embedded, [rows, length, width]."""
        seen: list[tuple[Tensor, Tensor | None]] = []

        def watch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            seen.append((output, given.tokens(output)))
            return output

        given, hook = Given(self.model), self.embed.register_forward_hook(watch)
        try:
            probe.gradients([])
        finally:
            hook.remove()
            given.hook.remove()
        return [self._push(probe, output.detach(), output.grad, valid) for output, valid in seen]

    def _push(self, probe: Probe, inputs: Tensor, gradient: Tensor | None, valid: Tensor | None) -> Tensor:
        """The size is a row's own, over its tokens on all ranks, so that nothing depends on how rows and columns are cut."""
        squares = inputs.double().square().mean(dim=2)
        counted = torch.ones_like(squares) if valid is None else valid.to(squares.dtype)
        sums = torch.stack([(squares * counted).sum(1), counted.sum(1)])
        total, count = probe.engine.layout.world.sum(sums, "context")
        if gradient is None:
            return torch.zeros_like(inputs)
        scale = (total / count.clamp(min=1.0)).sqrt()[:, None, None]
        return gradient.sign() * (self.size * scale).to(inputs.dtype)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """The weights before this update become the stale ones of the next step."""
        for parameter in self.names:
            state = self.state[parameter]
            if "latest" in state:
                state["stale"], state["latest"] = state["latest"], state.get("stale", torch.empty_like(parameter))
                state["latest"].copy_(parameter)
            else:
                state["latest"] = parameter.detach().clone()
