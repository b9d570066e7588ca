"""Which optimizer moves which parameter: groups matched on roles, names and shapes, held as one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from bessemer.core.errors import RecipeError, TrainingError
from bessemer.core.registry import Choice
from bessemer.models.transfer import parameter_scales, stacked_parts

TAGS: dict[str, Any] = {"role": str, "match": str, "dims": int}
"""What may stand beside an optimizer's options: the role of the parameters it takes (`matrix`, `embedding`, `head`,
`vector`), a pattern their names match (`blocks.*.attention.*`), or their number of dimensions."""


class Optimizers:
    """Several torch optimizers stepping as one, each over its own parameters, with state keyed by parameter names."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.factor = 1.0

    @property
    def groups(self) -> Iterable[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def set_factor(self, factor: float) -> None:
        """Sets every group's learning rate to its base rate times the schedule's factor."""
        self.factor = factor
        for group in self.groups:
            group["lr"] = group["base_lr"] * factor

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def forget(self, parameter: torch.Tensor) -> None:
        """Drops all state of a parameter, which then moves as if training had just begun."""
        for optimizer in self.optimizers:
            optimizer.state.pop(parameter, None)

    def entries(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """The state of a parameter that has one number for each of its own, to be changed in place; empty before its first step.

        Raises:
            TrainingError: there is state of another shape, so that a part of the parameter has no state of its own.
        """
        states = [(o, value) for o in self.optimizers if parameter in o.state for value in o.state[parameter].values()]
        tensors = [(o, value) for o, value in states if isinstance(value, torch.Tensor) and value.ndim]
        for optimizer, value in tensors:
            if value.shape != parameter.shape or not value.is_floating_point():
                raise TrainingError(
                    f"the state of a part of a parameter is to change, and {type(optimizer).__name__} keeps none for each number",
                    key="optim",
                    mend="use an elementwise optimizer with whole states, such as adamw",
                )
        return [value for _, value in tensors]

    def rate(self) -> float:
        """The first optimizer's learning rate as the recipe gives it, times the schedule's factor."""
        return next(iter(self.groups))["rate"] * self.factor

    def state_bytes(self) -> int:
        """Bytes of optimizer state held now."""
        tensors = (value for optimizer in self.optimizers for state in optimizer.state.values() for value in state.values())
        return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor) and value.ndim)


def build(model: torch.nn.Module, choices: list[Choice], roles: Mapping[str, str]) -> Optimizers:
    """Gives each trainable parameter to the first entry that takes it.

    Args:
        choices: entries of kind optim with tags; one without tags takes what is left.
        roles: parameter name -> role, from the layers.

    Raises:
        RecipeError: a parameter is taken by no entry, or an entry takes none.
    """
    claimed: dict[int, list[tuple[str, torch.nn.Parameter]]] = {number: [] for number in range(len(choices))}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        number = next((i for i, choice in enumerate(choices) if _takes(choice, name, parameter, roles)), None)
        if number is None:
            raise RecipeError(
                f"no optimizer takes the parameter '{name}' (role {roles.get(name)})",
                key="optim",
                mend="end the list with an entry that has no role, match or dims",
            )
        claimed[number].append((name, parameter))
    for number, choice in enumerate(choices):
        if not claimed[number]:
            raise RecipeError(
                f"the optimizer '{choice.name}' takes no parameter",
                key=f"optim[{number}]",
                mend=f"roles here are {', '.join(sorted(set(roles.values())))}",
            )
    return Optimizers([_construct(model, choice, claimed[number], roles) for number, choice in enumerate(choices)])


def _takes(choice: Choice, name: str, parameter: torch.nn.Parameter, roles: Mapping[str, str]) -> bool:
    tags = choice.tags
    return (
        ("role" not in tags or roles.get(name) == tags["role"])
        and ("match" not in tags or fnmatch.fnmatchcase(name, tags["match"]))
        and ("dims" not in tags or parameter.ndim == tags["dims"])
    )


def _construct(
    model: torch.nn.Module, choice: Choice, named: list[tuple[str, torch.nn.Parameter]], roles: Mapping[str, str]
) -> torch.optim.Optimizer:
    """One optimizer over groups that share a learning rate and a weight decay.

    A parameter's rate is the recipe's times its scale (models/transfer.py), which keeps the best rate the same over widths
    and depths; its decay is divided by that scale, so that rate times decay stays. Only matrices and heads decay.
    """
    scales = parameter_scales(model, getattr(choice.target, "transfer", "adam"))
    parts = stacked_parts(model)
    grouped: dict[tuple[float, bool], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in named:
        grouped.setdefault((scales[name], roles[name] in ("matrix", "head")), []).append((name, parameter))
    rate, decay = choice.options.get("lr", 1.0), choice.options.get("weight_decay", 0.0)
    groups: list[dict[str, Any]] = []
    for (scale, decays), members in sorted(grouped.items()):
        group: dict[str, Any] = {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "rate": rate,
            "base_lr": rate * scale,
            "lr": rate * scale,
        }
        if decay:
            group["weight_decay"] = decay / scale if decays else 0.0
        group["parts"] = [parts.get(n, ()) for n, _ in members]
        groups.append(group)
    return choice(groups)
