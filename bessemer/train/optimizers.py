"""Which optimizer moves which parameter: groups matched on roles, names and shapes, held as one."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from bessemer.core import device, shards
from bessemer.core.errors import RecipeError, TrainingError
from bessemer.core.hooks import when_accumulated
from bessemer.core.mesh import AXES, World
from bessemer.core.progress import Progress
from bessemer.core.registry import Choice
from bessemer.models.reparameterized import Counting
from bessemer.models.transfer import parameter_scales, stacked_parts
from bessemer.optim._probe import Probe
from bessemer.optim.around._around import Around

TAGS: dict[str, Any] = {"role": str, "match": str, "dims": int}
"""What may stand beside an optimizer's options: the role of the parameters it takes (`matrix`, `embedding`, `head`,
`vector`), a pattern their names match (`blocks.*.attention.*`), or their number of dimensions."""


class Optimizers:
    """Several torch optimizers stepping as one, each over its own parameters, with state keyed by parameter names."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], around: Sequence[Around] = ()) -> None:
        self.moving, self.around = optimizers, list(around)
        self.factor = 1.0
        self.released = 0.0
        self.before_release: Callable[[], None] = lambda: None
        self.owners: dict[int, torch.optim.Optimizer] = {}
        for method in self.around:
            method.beside(self.moving)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All that hold state: those that move parameters, and the methods around them."""
        return [*self.moving, *self.around]

    @property
    def groups(self) -> Iterable[dict[str, Any]]:
        for optimizer in self.moving:
            yield from optimizer.param_groups

    def set_factor(self, factor: float) -> None:
        """Sets every group's learning rate to its base rate times the schedule's factor."""
        self.factor = factor
        for group in self.groups:
            group["lr"] = group["base_lr"] * factor

    def begin(self, progress: Progress) -> None:
        """Before a step's forward pass: what trains may change."""
        self.released = 0.0
        for method in self.around:
            method.begin(progress)

    def prepare(self, probe: Probe) -> None:
        """After the backward pass, before the gradient is measured, clipped and judged: methods may ask for more, and change it."""
        for method in self.around:
            method.prepare(probe)
        for optimizer in self.moving:
            if hasattr(optimizer, "prepare"):
                optimizer.prepare(probe)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights inside are those to measure and to keep: the average, where a method makes one."""
        with ExitStack() as stack:
            for optimizer in self.optimizers:
                if hasattr(optimizer, "averaged"):
                    stack.enter_context(optimizer.averaged())
            yield

    def update_in_backward(self, before: Callable[[], None]) -> None:
        """From now on each parameter moves as soon as the backward pass has its gradient, which is then dropped: it is never held whole.

        A gradient that is not finite is dropped without an update.

        Args:
            before: called before each update.

        Raises:
            RecipeError: a method here needs more than one parameter's gradient at a time.
        """
        for method in self.optimizers:
            whole = method.needs_gradients if isinstance(method, Around) else hasattr(method, "prepare") or not getattr(method, "apart", True)
            if whole:
                raise RecipeError(
                    f"{type(method).__name__} needs the whole gradient, and in the backward pass there is one parameter's at a time",
                    key="per_layer",
                    mend="per_layer = false, or another optimizer",
                )
        self.before_release = before
        for optimizer in self.moving:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self.owners[id(parameter)] = optimizer
                    when_accumulated(parameter, self._release)

    def _release(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        norm = float(parameter.grad.norm())
        self.released = math.hypot(self.released, norm)
        if math.isfinite(norm):
            self.before_release()
            self.owners[id(parameter)].step()
        parameter.grad = None

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def forget(self, parameter: torch.Tensor) -> None:
        """Drops all state of a parameter, which then moves as if training had just begun."""
        for optimizer in self.moving:
            optimizer.state.pop(parameter, None)

    def entries(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """The state of a parameter that has one number for each of its own, to be changed in place; empty before its first step.

        Raises:
            TrainingError: there is state of another shape, so that a part of the parameter has no state of its own.
        """
        states = [(o, value) for o in self.moving if parameter in o.state for value in o.state[parameter].values()]
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

    def state_bytes(self, world: World | None = None) -> int:
        """Bytes of optimizer state held now, of the whole model; with a world all ranks ask together.

        An embedding that the first and the last stage of a pipeline share has state on both, and counts twice.
        """
        alike, alone = 0.0, 0.0  # what all ranks of a stage say the same about, and what one rank of a parameter's mesh keeps
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                size = sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, torch.Tensor))
                if getattr(optimizer, "whole", False) and shards.pieces(parameter) > 1:
                    alone += size * parameter.device_mesh.size()  # type: ignore[attr-defined]
                else:
                    alike += size
        if world is None:
            return round(alike + alone)
        sizes = [torch.tensor(size, dtype=torch.float64, device=device.device()) for size in (alike, alone)]
        return round(float(world.sum(sizes[0], "pipe") + world.sum(sizes[1], *AXES) * world.mesh.pipe / world.mesh.ranks))


def build(model: torch.nn.Module, choices: list[Choice], roles: Mapping[str, str], around: Sequence[Choice] = ()) -> Optimizers:
    """Gives each trainable parameter to the first entry that takes it.

    Args:
        choices: entries of kind optim with tags; one without tags takes what is left.
        around: entries of kind optim/around with tags; each takes all that its tags fit, beside the optimizers.
        roles: parameter name -> role, from the layers.

    Raises:
        RecipeError: nothing trains, a parameter is taken by no entry, an entry takes none though it isn't spare, or a parameter
            would have two averages.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError("every parameter of the model is frozen", key="adapt", mend='others = "train"')
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
        if not claimed[number] and not _spare(model, choice, roles):
            raise RecipeError(
                f"the optimizer '{choice.name}' takes no parameter",
                key=f"optim[{number}]",
                mend=f"roles here are {', '.join(sorted(set(roles.values())))}",
            )
    moving = [_construct(model, choice, claimed[number], roles) for number, choice in enumerate(choices) if claimed[number]]
    _check_zeroed(model, moving)
    return Optimizers(moving, _around(model, around, roles, moving))


def _check_zeroed(model: torch.nn.Module, moving: list[torch.optim.Optimizer]) -> None:
    """Refuses layers that change single numbers of the optimizer's state beside one that has none."""
    found = {p: type(m).__name__ for m in model.modules() if isinstance(m, Counting) and m.zeroes for p in m.parameters(recurse=False)}
    for optimizer in moving:
        if getattr(optimizer, "per_number", True) and getattr(optimizer, "states", "full") == "full":
            continue
        for parameter in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
            if parameter in found:
                raise RecipeError(
                    f"{found[parameter]} begins parts of the optimizer's state anew, and that of {type(optimizer).__name__} has no such parts",
                    key="optim",
                    mend='an elementwise optimizer with states = "full", such as adamw',
                )


def _spare(model: torch.nn.Module, choice: Choice, roles: Mapping[str, str]) -> bool:
    """Whether an entry may take nothing: all that fits it is frozen, or it takes what is left and nothing is."""
    fitting = [parameter.requires_grad for name, parameter in model.named_parameters() if _takes(choice, name, parameter, roles)]
    return bool(fitting) and not (choice.tags and any(fitting))


def _around(model: torch.nn.Module, choices: Sequence[Choice], roles: Mapping[str, str], moving: list[torch.optim.Optimizer]) -> list[Around]:
    made: list[Around] = []
    for number, choice in enumerate(choices):
        every = [(n, p) for n, p in model.named_parameters() if p.requires_grad and _takes(choice, n, p, roles)]
        if not every:
            mend = f"roles here are {', '.join(sorted(set(roles.values())))}"
            raise RecipeError(f"'{choice.name}' takes no parameter", key=f"around[{number}]", mend=mend)
        named = [(n, p) for n, p in every if not p.is_meta]
        made.append(choice([{"params": [p for _, p in named], "names": [n for n, _ in named], "everywhere": [n for n, _ in every]}], model))
    averaged: set[torch.Tensor] = set()
    for method in [*moving, *made]:
        if hasattr(method, "averaged"):
            members = {p for group in method.param_groups for p in group["params"]}
            if averaged & members:
                raise RecipeError(f"{type(method).__name__} averages parameters that another method averages already", key="around", mend="keep one")
            averaged |= members
    return made


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
    for (scale, decays), found in sorted(grouped.items()):
        members = [(n, p) for n, p in found if not p.is_meta]  # the others lie on other stages of a pipeline
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
