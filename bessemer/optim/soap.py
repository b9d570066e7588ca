"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.core.products import Chain, Product, Scratch, run
from bessemer.core.ranges import Betas, Count, Decay, NonNegative, Positive, Whole
from bessemer.optim import _fused
from bessemer.optim._matrices import Matrix, matrices, shapes
from bessemer.optim._rule import Group, Products, Rule, gradients, sweep

SIDES = ("left", "right")


class Soap(Rule):
    """Adam in a slowly turning eigenbasis of the gradient's second-moment matrices (Vyas et al. 2024).

    Claim: 40% fewer steps than AdamW, 35% less time.
    State of an m x n matrix: 2 m n numbers of the parameter's type and 2 k^2 for each preconditioned side k; vectors have AdamW's two.
    The momentum is kept in the basis and turned with it, which saves two products a step and is the same up to rounding. The first
    gradient only makes the basis. Each matrix stacked in one weight has its own.

    Args:
        betas: of the momentum and of squares in the basis.
        turning: decay of the second-moment matrices.
        every: steps between turns of the basis, each one step of orthogonal iteration.
        sides: precondition both sides of a matrix, as published, or only the shorter, of a square the inputs (the paper's one-sided
            form: a third of the products and half the state).
        most: sides longer than this keep their own basis (vocabularies).
        weight_decay: decoupled, after the update.
        products: what matrices are multiplied in.
    """

    elementwise = False
    per_number = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 3e-3,
        betas: Betas = [0.95, 0.95],
        turning: Decay = 0.95,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.01,
        every: Count = 10,
        sides: Literal["shorter", "both"] = "shorter",
        most: Whole = 4096,
        products: Products = "float32",
    ) -> None:
        self.betas, self.turning, self.eps, self.every, self.sides, self.most = betas, turning, eps, every, sides, most
        self.products = products
        super().__init__(params, lr, weight_decay)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """The first gradient makes the basis; each later one moves in the basis the ones before it made."""
        for count, stepping in self.counted(members):
            step = count - 1
            size = group["lr"] * math.sqrt(1.0 - self.betas[1] ** step) / (1.0 - self.betas[0] ** step) if step else 0.0
            shrink = 1.0 - group["lr"] * group["weight_decay"]
            vectors = [p for p in stepping if p.ndim < 2]
            columns = self.column(vectors, "exp_avg"), self.column(vectors, "exp_avg_sq", signed=False)
            if step:

                def move(p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor], size: float = size, shrink: float = shrink) -> None:
                    torch._foreach_add_(p, self._adam(g, m, v), alpha=-size)
                    torch._foreach_mul_(p, shrink)

                sweep(move, vectors, gradients(vectors), *columns)
            found = [matrix for _, inside in matrices(group, stepping, self.state) for matrix in inside]
            chains: list[Chain] = []
            for matrix in found:
                if step:
                    chains += self._moves(matrix, size, shrink)
                chains += self._learns(matrix)
            run(chains)
            for matrix in found:
                self._follow(matrix, turn=step > 0 and step % self.every == 0)

    def preconditioned(self, rows: int, columns: int) -> list[bool]:
        """Which sides of a matrix are."""
        left, right = rows <= self.most, columns <= self.most
        if self.sides == "both":
            return [left, right]
        return [left and rows < columns, right and columns <= rows]

    def _adam(self, g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """The moments take the gradients in; m / (sqrt(v) + eps)."""
        torch._foreach_lerp_(m, g, 1.0 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, g, g, value=1.0 - self.betas[1])
        root = torch._foreach_sqrt(v)
        torch._foreach_add_(root, self.eps)
        return list(torch._foreach_div(m, root))

    def _moves(self, matrix: Matrix, size: float, shrink: float) -> list[Chain]:
        """Turn the gradient into the basis, Adam, turn back and add; span by span where only the shorter side is turned.

        Updates are a thousandth of the weights they are added to, so their products may be that much coarser.
        """
        left, right = (matrix.get(f"basis.{side}") for side in SIDES)
        if left is None and right is None:
            update = self._adam([matrix.gradient], [matrix["exp_avg"]], [matrix["exp_avg_sq"]])[0]
            matrix.weight.add_(update, alpha=-size).mul_(shrink)
            return []
        chains: list[Chain] = []
        for span in matrix.spans() if left is None or right is None else [slice(None)]:
            whole = matrix.weight, matrix.gradient.contiguous(), matrix["exp_avg"], matrix["exp_avg_sq"]
            weight, gradient, first, second = (matrix.piece(tensor, span) for tensor in whole)
            turned, other = (Scratch(number, *gradient.shape) for number in range(2))
            direct = _fused.directing(turned, first, second, self.betas, self.eps, -size * shrink)
            coarse, add = partial(Product, parts=2), partial(Product, out=weight, plus=weight, beta=shrink, parts=2)
            if left is None:
                chains.append([coarse(gradient, right, turned), direct, add(turned, right.mT)])
            elif right is None:
                chains.append([coarse(left.mT, gradient, turned), direct, add(left, turned)])
            else:
                turn = [coarse(left.mT, gradient, other), coarse(other, right, turned)]
                chains.append([*turn, direct, coarse(left, turned, other), add(other, right.mT)])
        return chains

    def _learns(self, matrix: Matrix) -> list[Chain]:
        """The gradient enters the second-moment matrices."""
        gradient = matrix.gradient
        chains: list[Chain] = []
        if "exp_avg" not in matrix:
            matrix["exp_avg"], matrix["exp_avg_sq"] = torch.zeros_like(matrix.weight), torch.zeros_like(matrix.weight)
        for side, (name, wanted) in enumerate(zip(SIDES, self.preconditioned(*gradient.shape), strict=True)):
            if not wanted:
                continue
            if f"second.{name}" not in matrix:
                matrix[f"second.{name}"] = gradient.new_zeros(gradient.shape[side], gradient.shape[side])
            second = matrix[f"second.{name}"]
            slope = gradient if side == 0 else gradient.mT
            chains.append([Product(slope, slope.mT, second, second, self.turning, 1.0 - self.turning, symmetric=True)])
        return chains

    def _follow(self, matrix: Matrix, turn: bool) -> None:
        """Now and then the bases follow the second-moment matrices, the moments with them."""
        for side, name in enumerate(SIDES):
            second = matrix.get(f"second.{name}")
            if second is None:
                continue
            if f"basis.{name}" not in matrix:
                matrix[f"basis.{name}"] = torch.linalg.eigh(second.float())[1].flip(1).to(second.dtype).contiguous()
            elif turn:
                self._turn(matrix, name, side, second)

    def _turn(self, matrix: Matrix, name: str, side: int, second: Tensor) -> None:
        """One step of orthogonal iteration on the second-moment matrix, sorted by what each direction holds of it."""
        basis = matrix[f"basis.{name}"]
        product = second @ basis
        order = (basis * product).sum(0).argsort(descending=True)
        new = torch.linalg.qr(product.index_select(1, order).float())[0].to(basis.dtype)
        carry = new.mT @ basis
        momentum = matrix["exp_avg"]
        momentum.copy_(carry @ momentum if side == 0 else momentum @ carry.mT)
        matrix["exp_avg_sq"].copy_(matrix["exp_avg_sq"].index_select(side, order))
        basis.copy_(new)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two moments, and a matrix and its basis for each preconditioned side."""
        total = 2 * torch.Size(shape).numel()
        if len(shape) > 1:
            for matrix in shapes(shape, parts):
                total += sum(2 * side * side for side, wanted in zip(matrix, self.preconditioned(*matrix), strict=True) if wanted)
        return total * width
