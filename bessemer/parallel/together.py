"""What modules do to themselves between steps, their parameters whole on every rank if they need them so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core import shards
from bessemer.core.progress import Progress
from bessemer.models.reparameterized import Optimizers


def change(model: nn.Module, progress: Progress, optimizers: Optimizers, counts: dict[str, Tensor]) -> None:
    """Lets every module that changes itself between steps do so: `after_step(progress, optimizers, counts)`, once after each update.

    One that says by `due()` that it will act on its parameters then has them whole. Every rank does the same with the same.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "after_step"):
            acts = hasattr(module, "due") and module.due()
            with together(module, optimizers) if acts else nullcontext(optimizers) as given:
                module.after_step(progress, given, counts)


@contextmanager
def together(layer: nn.Module, optimizers: Optimizers) -> Iterator[Optimizers]:
    """The layer's own parameters are plain and whole inside, as is the state that the optimizers given show of them; what became of both goes into
    the pieces that ranks hold. All ranks call this together, and do the same inside.
    """
    pieces: dict[str, Any] = {name: p for name, p in layer._parameters.items() if isinstance(p, DTensor)}
    if not pieces:
        yield optimizers
        return
    whole = {name: nn.Parameter(shards.whole(p.detach()), requires_grad=p.requires_grad) for name, p in pieces.items()}
    found = Together(optimizers, {whole[name]: p for name, p in pieces.items()})
    try:
        layer._parameters.update(whole)
        yield found
    finally:
        layer._parameters.update(pieces)
    for name, p in pieces.items():
        shards.fill(p.detach(), whole[name].detach())
    found.hand_back()


class Together:
    """`Optimizers` of parameters that are whole for the while.

    Args:
        pieces: whole -> as it lies on the ranks.
    """

    def __init__(self, optimizers: Optimizers, pieces: dict[Tensor, Tensor]) -> None:
        self.optimizers, self.pieces = optimizers, pieces
        self.taken: list[tuple[Tensor, Tensor]] = []

    def forget(self, parameter: Tensor) -> None:
        self.optimizers.forget(self.pieces.get(parameter, parameter))

    def entries(self, parameter: Tensor) -> list[Tensor]:
        states = self.optimizers.entries(self.pieces.get(parameter, parameter))
        found = [shards.whole(state) for state in states]
        self.taken += zip(states, found, strict=True)
        return found

    def hand_back(self) -> None:
        """What became of the states goes into their pieces."""
        for state, whole in self.taken:
            if state is not whole:
                shards.fill(state, whole)
