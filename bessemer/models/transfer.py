"""Initial values and learning rates by parameter, such that what is best for a small model is best for a large one.

The scheme is muP (Yang et al. 2022, "Tensor Programs V") with the depth rule of CompleteP (Dey et al. 2025), relative to the
decoder of depth 4 and width 256. Let m = width / 256, d = depth / 4. Under Adam each entry of a matrix moves by about the
learning rate whatever the gradient's size, and those moves line up with the inputs, so an output moves by fan-in times the
rate:

    role                    init std               rate (Adam)      why
    embedding               constant               1                one row is read per token: fan-in 1
    matrix                  1 / sqrt(fan-in)       1 / m            outputs move by a constant
    matrix into residual    1 / sqrt(fan-in) / d   1 / (m d)        `depth` branches add up to a constant (branch / depth)
    norm into residual      1 / d                  1 / d            the same, where norms end the branches (OLMo 2)
    head                    1 / fan-in             1 / m            logits start small and move by a constant
    vector                  1 (norms), 0 (biases)  1                one input each; biases into the residual 1 / d

muP usually writes some of these as multipliers in the forward pass. For an optimizer whose update does not depend on the
gradient's scale, W = a V with rates r on V is the same training as W itself with init and rate times a (Yang and Hu 2021,
the abc-symmetry), so all of them are folded into init and rate: the forward pass is the plain architecture and export has
nothing to undo. Decoupled weight decay acts as rate times decay: keep the product by dividing the decay by the scale.

An orthogonalising optimizer (Muon) sets the size of the whole update, so width asks for nothing beyond its own shape factor
sqrt(max(1, outputs / inputs)); only the depth rule remains: `parameter_scales(model, rule="orthogonal")`.

An optimizer whose updates are a share of each matrix's own norm (LAMB, LARS: `rule="relative"`) follows the initial values by itself, so
depth, head and vectors ask for nothing. Only a matrix's outputs, moved by fan-in times rate / sqrt(fan-in), ask for rate / sqrt(m).

A tied embedding can't have both the embedding's and the head's rate; the final norm's gain then carries the head's 1 / m.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bessemer.core import rng
from bessemer.models.layers.grouped import ExpertLinear
from bessemer.models.layers.linear import Linear

BASE_WIDTH, BASE_DEPTH = 256, 4
EMBEDDING_STD, MATRIX_STD, RESIDUAL_STD, HEAD_STD = 0.1, 0.5, 0.5, 0.01
"""The free constants of the table above, at the base size; they move the best rate of all sizes together."""
PLAIN_STD = 0.02
"""What GPT-2 began with: the standard deviation of all matrices (of those into the residual divided by sqrt(2 depth))."""
Rule = Literal["adam", "orthogonal", "relative"]


def parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module, str]]:
    """(full name, parameter, module it belongs to, name there), each shared parameter once under its first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, parameter, module, name


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a stored model consists of, by full name: its parameters, each shared one once, and its lasting buffers."""
    found: dict[str, Tensor] = {full: parameter for full, parameter, *_ in parameters(model)}
    lasting = model.state_dict(keep_vars=True).keys()
    return found | {name: buffer for name, buffer in model.named_buffers() if name in lasting}


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """ "embedding", "matrix", "head", "vector" or "entries" (a list of a matrix's) by parameter name; what a layer leaves unsaid follows from its shape."""
    found = {}
    for full, parameter, module, name in parameters(model):
        roles = getattr(module, "roles", {})
        found[full] = roles.get(name, "matrix" if parameter.ndim > 1 else "vector")
    return found


def logical_axes(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The logical axis of each dimension by parameter name: "vocabulary", "embed", "heads", "head", "ffn", "position", "experts"."""
    found = {}
    for full, parameter, module, name in parameters(model):
        axes = getattr(module, "axes", {})
        found[full] = tuple(axes.get(name, ("none",) * parameter.ndim))
    return found


def stacked_parts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of each matrix stacked in one weight, by parameter name, for those that stack several (query, key, value)."""
    return {
        full: module.parts  # type: ignore[misc]
        for full, _, module, name in parameters(model)
        if (isinstance(module, Linear | ExpertLinear) or name == "offset") and len(module.parts) > 1  # type: ignore[arg-type]
    }


def parameter_scales(model: nn.Module, rule: Rule = "adam") -> dict[str, float]:
    """What the learning rate is multiplied by, by parameter name; the derivation is at the head of this file.

    All ones for a model built with `transfer = false`, as imported ones are.

    Args:
        rule: "adam" for optimizers that move each entry by about the rate (Adam, Lion, Adafactor), "orthogonal" for those
            that set the size of the whole matrix update (Muon, Shampoo), "relative" for those that set it as a share of the matrix's
            norm (LAMB, LARS).
    """
    options = getattr(model, "options", {})
    if not options.get("transfer"):
        return {full: 1.0 for full, *_ in parameters(model)}
    width, depth = options["width"] / BASE_WIDTH, options["depth"] / BASE_DEPTH
    scales = {}
    for full, _, module, name in parameters(model):
        scale = 1.0
        role = getattr(module, "roles", {}).get(name, "vector")
        if rule == "relative":
            scales[full] = width**-0.5 if role == "matrix" else 1.0
            continue
        if rule == "adam" and role in ("matrix", "head", "entries"):
            scale /= width
        if getattr(module, "residual", False):
            scale /= depth
        if options["tied"] and full.startswith("norm."):
            scale /= width
        scales[full] = scale
    return scales


@torch.no_grad()
def initialise(model: nn.Module, seed: int, within: str = "") -> None:
    """Draws every parameter anew, keyed by the seed and its name, so nothing depends on the order of construction; modules reset their buffers.

    Args:
        within: only those whose name begins so.
    """
    options = getattr(model, "options", {})
    for full, module in model.named_modules():
        if f"{full}.".startswith(within) and hasattr(module, "reset_buffers"):
            module.reset_buffers()
    for full, parameter, module, name in parameters(model):
        if not full.startswith(within):
            continue
        role = getattr(module, "roles", {}).get(name, "vector")
        if role == "vector":
            parameter.fill_(_vector(full, module, name, options))
        else:
            parameter.copy_(_normal(parameter, seed, full) * _std(module, role, parameter, options))


def _vector(full: str, module: nn.Module, name: str, options: dict[str, Any]) -> float:
    stated = getattr(module, "initial", {}).get(name)
    if stated is not None:
        return stated
    if name == "bias":
        return 0.0
    if not options.get("transfer"):
        return 1.0
    if options["tied"] and full.startswith("norm."):
        return BASE_WIDTH / options["width"]
    return RESIDUAL_STD * BASE_DEPTH / options["depth"] if getattr(module, "residual", False) else 1.0


def _std(module: nn.Module, role: str, parameter: Tensor, options: dict[str, Any]) -> float:
    residual = getattr(module, "residual", False)
    if not options.get("transfer"):
        return PLAIN_STD / math.sqrt(2 * options["depth"]) if residual else PLAIN_STD
    inputs = parameter.shape[-1]
    if role == "embedding":
        return PLAIN_STD if options["tied"] else EMBEDDING_STD
    if role == "head":
        return HEAD_STD * BASE_WIDTH / inputs
    std = MATRIX_STD / math.sqrt(inputs)
    return std * RESIDUAL_STD * BASE_DEPTH / options["depth"] if residual else std


def _normal(parameter: Tensor, seed: int, full: str) -> Tensor:
    return torch.randn(parameter.shape, generator=rng.generator(seed, "init", full))
