"""What all methods around an update share: parameters by name, state that is saved as an optimizer's is, and when they are called."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.progress import Progress
from bessemer.models.reparameterized import Counting
from bessemer.optim._probe import Probe


class Around(torch.optim.Optimizer):
    """A method beside the optimizers: it owns no parameter, and its state is checkpointed under the parameters' names as theirs is.

    Attributes:
        sharded: whether it works on parameters that lie on several ranks.
        needs_gradients: whether it reads or changes the whole gradient before the update.
        copies: how many numbers it comes to hold for each of a parameter's.
        model: whose parameters they are.
        names: each parameter's name.
        everywhere: the names of these and of those that it has on other stages of a pipeline, in the model's order.
    """

    sharded: ClassVar[bool] = False
    needs_gradients: bool = True
    copies: int = 0

    def __init__(self, params: Any, model: nn.Module) -> None:
        super().__init__(params, {})
        self.model = model
        self.optimizers: list[torch.optim.Optimizer] = []
        group = self.param_groups[0]
        self.names: dict[Tensor, str] = dict(zip(group["params"], group.get("names") or map(str, range(len(group["params"]))), strict=True))
        self.everywhere: list[str] = group.pop("everywhere", list(self.names.values()))
        if not self.sharded and any(isinstance(p, DTensor) for p in self.names):
            raise RecipeError(f"{type(self).__name__} needs whole tensors, and this run shards its parameters", key="around")

    @property
    def plain(self) -> dict[str, Any]:
        """Numbers and words that are saved with the state."""
        return self.param_groups[0]

    def beside(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Meets the optimizers that do the moving."""
        self.optimizers = optimizers

    def begin(self, progress: Progress) -> None:
        """Before the forward pass of a step."""

    def prepare(self, probe: Probe) -> None:
        """After the backward pass, before the gradient is measured, clipped and judged; what it finds takes effect in `step` only."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """After the optimizers' update."""


class Given:
    """The batch of the model's pass that now runs.

    Args:
        model: Batch -> outputs; `hook` ends the watching.
    """

    def __init__(self, model: nn.Module) -> None:
        self.batch: Batch | None = None
        self.hook = model.register_forward_pre_hook(self._note)

    def _note(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.batch = inputs[0]

    def tokens(self, values: Tensor) -> Tensor | None:
        """Which columns of values [rows, columns, ...] are no padding: bool [rows, columns]; None: all, or they are no columns of the batch."""
        segments = getattr(self.batch, "segments", None)
        return None if segments is None or segments.shape != values.shape[:2] else segments != 0


def refuse_changing(method: Around) -> None:
    """Refuses to average parameters whose meaning changes between steps, as that of factors begun anew does.

    Raises:
        RecipeError: the model's layers are made of such.
    """
    changing = next((module for module in method.model.modules() if isinstance(module, Counting)), None) if method.model is not None else None
    if changing is not None:
        raise RecipeError(
            f"{type(method).__name__} averages parameters over steps, and those of {type(changing).__name__} stand for something else from time to time",
            key="around",
            mend="leave it out, or adapt = a method whose parts stay, such as lora",
        )
