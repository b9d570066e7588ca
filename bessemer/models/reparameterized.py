"""Linear layers whose weight is made of something else that trains: low-rank factors, sparse entries, scales. And back to plain.

A method of the kind `models/reparameterize` writes one `Matrix`, a module that stands for one matrix of one layer, and hands it to
`replace`. A layer that stacks several matrices (query, key and value; gate and up) gets one for each, so every method acts on
the matrices its paper speaks of.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from bessemer.core import rng
from bessemer.core.errors import RecipeError
from bessemer.core.products import linear
from bessemer.core.progress import Progress
from bessemer.core.registry import Auto, Choice
from bessemer.models.layers.head import Share
from bessemer.models.layers.linear import Linear

KIND = "models/reparameterize"
Match = str | list[str]
"""Patterns of the names of linear layers, such as "blocks.*.attention.*"."""
Others = Literal["train", "freeze"]
"""What becomes of all parameters that belong to no reparameterized layer."""


@dataclass(frozen=True)
class Place:
    """Where in the model a matrix stands.

    Attributes:
        name: of the layer and of the matrix in it, which with the seed is the key of every draw.
        axes: logical axes of the weight: outputs, inputs.
        residual: whether the layer's output is added to the residual stream.
    """

    name: str
    axes: tuple[str, str]
    residual: bool
    seed: int

    def generator(self, purpose: str, *index: int) -> torch.Generator:
        return rng.generator(self.seed, "reparameterize", self.name, purpose, *index)

    def normal(self, shape: tuple[int, ...], std: float, like: Tensor, purpose: str) -> Tensor:
        """Normal values keyed by this place; nothing is drawn for a model without memory."""
        if like.is_meta:
            return like.new_empty(shape)
        return (torch.randn(shape, generator=self.generator(purpose)) * std).to(like)

    def uniform(self, shape: tuple[int, ...], bound: float, like: Tensor, purpose: str) -> Tensor:
        """Uniform values in [-bound, bound), likewise."""
        if like.is_meta:
            return like.new_empty(shape)
        return (torch.rand(shape, generator=self.generator(purpose)) * (2 * bound) - bound).to(like)


class Optimizers(Protocol):
    """What a matrix may do to the optimizers' state between steps."""

    def forget(self, parameter: Tensor) -> None:
        """Drops all state of a parameter."""

    def entries(self, parameter: Tensor) -> list[Tensor]:
        """The state of a parameter that has one number for each of its own, to be changed in place."""


class Matrix(nn.Module):
    """One matrix of a layer, [outputs, inputs], made of what trains. A method derives from it.

    Where several share a layer's outputs or inputs, each has of every parameter what lies along that axis, the others whole, and what is composed
    or computed here is a share of the outputs, or a summand.

    Attributes:
        keeps: whether it begins as the weight it was made from, so that an earlier model goes on as it was.
        axes, roles: as in layers/linear.py, for each of its parameters.
        outputs, inputs: of the whole matrix.
    """

    keeps: ClassVar[bool] = True
    total: Callable[[Tensor], Tensor] = staticmethod(lambda values: values)
    """The sum, without a gradient, over those who share the inputs."""

    def __init__(self, weight: Tensor, place: Place) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.place, self.residual = place, place.residual
        self.axes: dict[str, tuple[str, ...]] = {}
        self.roles: dict[str, str] = {}

    def hold(self, name: str, value: Tensor, role: str = "matrix", axes: tuple[str, ...] | None = None, *, trains: bool = True) -> None:
        """Makes a parameter; of itself its axes are those of the whole matrix."""
        self.register_parameter(name, nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=trains))
        self.axes[name], self.roles[name] = axes or self.place.axes, role

    def composed(self) -> Tensor:
        """The matrix itself, [outputs, inputs], as a function of the parameters."""
        raise TypeError(f"{type(self).__name__} composes no matrix")

    def composed_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias [outputs] that goes with it, given the layer's own."""
        return bias

    def product(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]: x composed()^T, or the same computed more cheaply."""
        with exact(x):
            weight = self.composed()
        return linear(x, weight)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., inputs] -> [..., outputs]: the product with the composed bias."""
        y, shift = self.product(x), self.composed_bias(bias)
        return y if shift is None else y + shift.to(y.dtype)

    def share(self, dim: int, begin: int, end: int, total: Callable[[Tensor], Tensor]) -> None:
        """From now on what is here is the part from `begin` to `end` of the outputs (dim 0) or inputs (1).

        Raises:
            RecipeError: what it is made of can't be cut there.
        """
        if dim == 1:
            self.__dict__["total"] = total

    def flops(self) -> float:
        """Operations of training on one token: 2 each forward, for the input's gradient and for the weight's."""
        return 6.0 * self.outputs * self.inputs


class Counting(Matrix):
    """A matrix that acts every so many updates. Its count is saved with checkpoints; steps the guard skipped don't count.

    Attributes:
        every: updates between two acts.
        zeroes: whether it changes single numbers of the optimizer's state.
    """

    every: int = 1
    zeroes: bool = False

    def __init__(self, weight: Tensor, place: Place) -> None:
        super().__init__(weight, place)
        self.updates = 0

    def after_step(self, progress: Progress, optimizers: Optimizers, counts: Any = None) -> None:
        """Called by the loop after each update."""
        acts = self.due()
        self.updates += 1
        if acts:
            with torch.no_grad():
                self.act(progress, optimizers)

    def due(self) -> bool:
        """Whether the next update makes it act, for which its parameters must be whole. Without memory there is nothing to act on."""
        return (self.updates + 1) % self.every == 0 and not any(p.is_meta for p in self.parameters())

    def act(self, progress: Progress, optimizers: Optimizers) -> None:
        """What the method does every `every` updates; `self.updates` have been taken."""
        raise TypeError(f"{type(self).__name__} does nothing between steps")

    def get_extra_state(self) -> int:
        return self.updates

    def set_extra_state(self, state: int) -> None:
        self.updates = state


class Reparameterized(nn.Module):
    """A linear layer y = x W^T + b whose W is a stack of `Matrix` modules; it takes the bias of the layer it stands for."""

    def __init__(self, plain: Linear, matrices: list[Matrix]) -> None:
        super().__init__()
        self.outputs, self.inputs = plain.weight.shape
        self.parts, self.residual = plain.parts, plain.residual
        outputs, inputs = plain.axes["weight"]
        self.plain_axes, self.plain_role = (outputs, inputs), plain.roles["weight"]
        self.axes, self.roles = {"offset": plain.axes["bias"]}, {"offset": "vector"}
        self.offset = plain.bias
        self.matrices = nn.ModuleList(matrices)

    def members(self) -> Iterator[tuple[Any, Tensor | None]]:
        """Each matrix and its share of the bias."""
        shares = [None] * len(self.parts) if self.offset is None else self.offset.split(list(self.parts))
        yield from zip(self.matrices, shares, strict=True)

    @property
    def weight(self) -> Tensor:
        """The composed weight [outputs, inputs], with its graph."""
        return torch.cat([matrix.composed() for matrix, _ in self.members()])

    @property
    def bias(self) -> Tensor | None:
        """The composed bias [outputs], or None."""
        shares = [matrix.composed_bias(bias) for matrix, bias in self.members()]
        return None if any(share is None for share in shares) else torch.cat(shares)

    def share(self) -> Share:
        """What objectives read of a head: here the whole vocabulary, composed."""
        return Share(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        pieces = [matrix(x, bias) for matrix, bias in self.members()]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The plain layer that computes the same; composed in float32, held in the parameters' own type."""
        kind = next(self.parameters()).dtype
        self.float()
        weight, bias = self.weight.to(kind), self.bias
        plain = Linear(
            self.inputs, self.outputs, axes=self.plain_axes, bias=bias is not None, parts=self.parts, residual=self.residual, role=self.plain_role
        )  # fmt: skip
        plain.weight = nn.Parameter(weight.contiguous())
        if bias is not None:
            plain.bias = nn.Parameter(bias.to(kind))
        return plain


def replace(
    model: nn.Module, make: Callable[[Tensor, Place], Matrix], seed: int, match: Match, others: Others
) -> nn.Module:  # fmt: skip
    """Puts matrices made by `make` in the place of the weights of the linear layers whose names match, and sets what trains.

    Raises:
        RecipeError: no layer matches, one is reparameterized already, or one shares its weight with another.
    """
    patterns = [match] if isinstance(match, str) else match
    named = [(name, module) for name, module in model.named_modules() if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    chosen = [(name, module) for name, module in named if isinstance(module, Linear)]
    if any(isinstance(module, Reparameterized) for _, module in named):
        raise RecipeError("the layers are reparameterized already", key="adapt", mend="merge the model first: bessemer.models.reparameterized.merge")
    if not chosen:
        linear = sorted({_shape_of(name) for name, module in model.named_modules() if isinstance(module, Linear)})
        raise RecipeError(f"no linear layer matches {match!r}", key="adapt.match", mend=f"there is {', '.join(linear)}")
    shared = _shared(model)
    for name, module in chosen:
        if module.weight in shared:
            raise RecipeError(
                f"'{name}' shares its weight with another layer, and only one of them would change",
                key="adapt.match",
                mend="leave it out of the pattern, or build the model with tied = false",
            )
    if others == "freeze":
        model.requires_grad_(False)
    for name, module in chosen:
        _put(model, name, Reparameterized(module, [make(part, place) for part, place in _parts(name, module, seed)]))
    return model


def reparameterize(model: nn.Module, choice: Choice, seed: int = 0) -> nn.Module:
    """Applies a method of this kind and notes it in the model, so that its package builds it again."""
    model = choice(model, seed)
    model.adapt = choice  # type: ignore[assignment]
    return model


def matrices(model: nn.Module) -> list[Matrix]:
    """Every reparameterized matrix of a model."""
    return [module for module in model.modules() if isinstance(module, Matrix)]


def merge(model: nn.Module) -> nn.Module:
    """The model with plain layers that compute the same; one that is plain already stays as it is.

    Where the method adds biases that the family's options leave out, the options get them and layers without one get zeros.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Reparameterized)}
    added = [name for name, layer in layers.items() if layer.offset is None and layer.bias is not None]
    for name, layer in layers.items():
        _put(model, name, layer.merged())
    if layers:
        model.requires_grad_(True)
        model.adapt = None  # type: ignore[assignment]
    for option, value, where in (("attention_bias", "all", ".attention."), ("mlp_bias", True, ".mlp."), ("head_bias", True, "head")):
        if any(where in name for name in added):
            model.options = {**model.options, option: value}  # type: ignore[arg-type, assignment, dict-item]
            for name, module in model.named_modules():
                if where in name and isinstance(module, Linear) and module.bias is None:
                    module.bias = nn.Parameter(module.weight.new_zeros(module.weight.shape[0]))
    return model


def rank_of(weight: Tensor, wanted: int | Auto) -> int:
    """The rank of a matrix's factors: as wanted but no more than it has; auto: a quarter of its smaller side, as for pre-training."""
    most = min(weight.shape)
    return max(1, most // 4) if wanted == "auto" else min(wanted, most)


def exact(x: Tensor) -> torch.autocast:
    """Composing happens in the parameters' own type, whatever the products are computed in."""
    return torch.autocast(x.device.type, enabled=False)


def svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [outputs, n], singular values [n] falling, V^T [n, inputs], in float32, with signs fixed so that kernels don't differ."""
    left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    if weight.is_meta:
        return left, values, right
    sign = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    return left * sign, values, right * sign.T


def _parts(name: str, layer: Linear, seed: int) -> Iterator[tuple[Tensor, Place]]:
    for number, part in enumerate(layer.weight.detach().split(list(layer.parts))):
        axes = layer.axes["weight"]
        yield part, Place(f"{name}.{number}", (axes[0], axes[1]), layer.residual, seed)


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _shared(model: nn.Module) -> set[Tensor]:
    seen: set[Tensor] = set()
    twice: set[Tensor] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (twice if parameter in seen else seen).add(parameter)
    return twice


def _shape_of(name: str) -> str:
    return ".".join("*" if word.isdigit() else word for word in name.split("."))
