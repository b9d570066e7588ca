"""What the update rules of this room share: members with gradients, state by name, sweeps that stay in cache, whole tensors out of pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bessemer.core import device, products, shards
from bessemer.optim import _fused
from bessemer.optim._blocks import Packed, States, held, stored_bytes, zeros
from bessemer.optim._matrices import parts_of
from bessemer.optim._owners import Cost, Owners, by_mesh, numbers, squared

CHUNK = 1 << 17
"""Numbers of a tensor updated at a time on a processor: what an update reads and writes of them stays in the second-level cache."""

LARGEST = 2.0**64
"""The least norm whose square is no float32: 1.8e19."""

Group = dict[str, Any]
Products = Literal["float32", "bfloat16"]
"""What a matrix method's products are computed in: the published float32, or bfloat16 with float32 sums, faster where hardware has it.

Our own kernels (`core/products.py`) keep 16 bits of mantissa of factors whose product becomes an update, all 24 elsewhere.
"""


class Rule(torch.optim.Optimizer):
    """A torch optimizer whose `update(group, members)` is called with the parameters that have a finite gradient.

    A parameter whose gradient is missing, not finite or so large that its square isn't is left alone, and so is its state. `lr` and
    `weight_decay` are a group's; the other options are the rule's and stay out of checkpoints.

    Attributes:
        transfer: how the best learning rate moves with width and depth (models/transfer.py).
        apart: whether parameters may be updated one at a time, as inside the backward pass.
        per_number: whether all state, where it isn't quantised, is moments of a parameter's single numbers, any of which may be begun anew.
        elementwise: whether ranks may update the pieces they hold; else one of them puts a parameter together, moves it and keeps its state.
        states: how elementwise state is held.
        products: what float32 matrices are multiplied in.
    """

    transfer: ClassVar[Literal["adam", "orthogonal", "relative"]] = "adam"
    apart: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    per_number: ClassVar[bool] = True
    products: Products = "float32"

    def __init__(self, params: Any, lr: float, weight_decay: float, states: States = "full") -> None:
        self.states: States = states
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        self.owners: list[Owners] | None = None

    @property
    def whole(self) -> bool:
        """Whether it moves whole tensors: of a parameter that ranks hold pieces of one rank keeps all state."""
        return not self.elementwise or self.states != "full"

    @property
    def columns(self) -> int:
        """How many tensors of a parameter that ranks hold pieces of travel to its owner for an update: none, or the weight and its gradient."""
        return 2 if self.whole else 0

    @property
    def cost(self) -> Cost:
        """What moving a parameter takes, by which ranks share out those that they hold pieces of."""
        return numbers if self.elementwise else squared

    def keeps(self, parameter: Tensor) -> bool:
        """Whether state of a parameter lies on this rank; all ranks ask together the first time."""
        if not self.whole or shards.pieces(parameter) == 1:
            return True
        return any(parameter in owners and owners.mine(parameter) for owners in self._owners())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there."""
        with matrix_products(self.products):
            for group in self.param_groups:
                moving = [p for p in group["params"] if p.grad is not None]
                if self.whole and any(isinstance(p, DTensor) for p in moving):
                    copies = {p: (shards.local(p.detach()), shards.local(p.grad)) for p in moving if shards.pieces(p) == 1}
                    self._advance_as(group, copies)
                else:
                    self.advance(group, moving)
            for owners in self.gathering():
                self._advance_pieces(owners)

    def gathering(self) -> list[Owners]:
        """Who puts parameters together that ranks hold pieces of, if that is done; all ranks ask together the first time."""
        return self._owners() if self.whole else []

    def _owners(self) -> list[Owners]:
        if self.owners is None:
            parts: dict[int, Sequence[int]] = {}
            for group in self.param_groups:
                parts |= parts_of(group)
            members = by_mesh([p for group in self.param_groups for p in group["params"]])
            self.owners = [Owners(lie, [parts[id(p)] for p in lie], self.cost) for lie in members]
        return self.owners

    def _advance_pieces(self, owners: Owners) -> None:
        """Has each parameter put together by its owner, moved there and handed out again."""
        members = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None and p in owners]

        def move(whole: dict[int, list[Tensor]]) -> dict[int, Tensor]:
            for group in self.param_groups:
                self._advance_as(group, {members[n][1]: (w, g) for n, (w, g) in whole.items() if members[n][0] is group})
            return {n: weight for n, (weight, _) in whole.items()}

        found = [p for _, p in members]
        if found:
            here = [shards.local(p) for p in found]
            for moved in owners.apply(found, [here, [shards.local(p.grad) for p in found]], move):
                torch._foreach_copy_([here[n] for n in moved], list(moved.values()))

    def _advance_as(self, group: Group, whole: dict[Tensor, tuple[Tensor, Tensor]]) -> None:
        """Advances parameters for which plain tensors stand in: (weight, gradient) of each."""
        parts = parts_of(group)
        with self.standing_in({parameter: weight for parameter, (weight, _) in whole.items()}) as members:
            try:
                for weight, gradient in whole.values():
                    weight.grad = gradient
                self.advance({**group, "params": members, "parts": [parts[id(p)] for p in whole]}, members)
            finally:
                for weight in members:
                    weight.grad = None

    @contextmanager
    def standing_in(self, whole: dict[Tensor, Tensor]) -> Iterator[list[Tensor]]:
        """Plain tensors that have, and make, the state of parameters that ranks hold pieces of."""
        for parameter, weight in whole.items():
            self.state[weight] = self.state[parameter]
        try:
            yield list(whole.values())
        finally:
            for parameter, weight in whole.items():
                self.state.pop(weight, None)
                if not self.state[parameter]:
                    del self.state[parameter]

    def advance(self, group: Group, members: list[Tensor]) -> None:
        """Has `update` move those whose gradient is finite."""
        members = self.sound(group, members)
        if members:
            self.update(group, members)

    def sound(self, group: Group, members: list[Tensor]) -> list[Tensor]:
        """The members whose gradient is finite."""
        return finite(members)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """The rule, for members of one group."""
        raise TypeError(f"{type(self).__name__} has no update")

    def state_bytes(self, shape: Sequence[int], width: int = 4, parts: Sequence[int] = ()) -> int:
        """Bytes of state a parameter of this shape takes once it has moved; numbers kept in plain Python count nothing.

        Args:
            width: bytes of one number of the parameter's type.
            parts: rows of the matrices stacked in it, if several.
        """
        raise TypeError(f"{type(self).__name__} documents no state")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, except that state keeps its own types: torch would turn codes into the parameter's type."""
        super().load_state_dict(state_dict)
        theirs = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        mine = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(theirs, mine, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.detach().clone().to(parameter.device)

    def counted(self, members: Iterable[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Counts one more step for each member, and yields them by their count, which missing gradients may set apart."""
        steps: dict[int, list[Tensor]] = {}
        for member in members:
            state = self.state[member]
            state["step"] = state.get("step", 0) + 1
            steps.setdefault(state["step"], []).append(member)
        yield from steps.items()

    def column(self, members: Iterable[Tensor], key: str, signed: bool = True) -> list[Tensor | Packed]:
        """A state of every member, made of zeros where there is none."""
        found = []
        for member in members:
            state = self.state[member]
            if key not in state and f"{key}.codes" not in state:
                zeros(state, key, member.detach(), self.states)
            found.append(held(state, key, signed))
        return found

    def column_bytes(self, count: int, width: int) -> int:
        """Bytes of one such state of `count` numbers."""
        return stored_bytes(count, self.states, width)


@contextmanager
def matrix_products(kind: Products) -> Iterator[None]:
    """Lets float32 products inside round their factors to bfloat16, or not; what was allowed before is allowed after."""
    before = torch.get_float32_matmul_precision()
    rough = kind == "bfloat16" and (products.fast() or device.compute_dtype() == torch.bfloat16)
    torch.set_float32_matmul_precision("medium" if rough else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def finite(members: list[Tensor]) -> list[Tensor]:
    """Those with a gradient that rules can work with (`not_finite`)."""
    if not members:
        return members
    bad = not_finite(gradients(members))
    return [p for p, wrong in zip(members, bad, strict=True) if not wrong] if any(bad) else members


def not_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Which tensors hold a number that is not finite, or are so large that rules would make one of them; of sharded ones all ranks say the same.

    Judged by the norm, one number a tensor and one wait for all, which must be below LARGEST: rules hold squares and sums of squares, and an
    infinite one never comes back. Entries of 1e25 are no training, whatever the rule.
    """
    sums = _fused.squares(tensors)
    if sums is not None:
        return [not whole < LARGEST**2 for whole in sums]
    return [not norm < LARGEST for norm in shards.norms(tensors).tolist()]


def gradients(members: Iterable[Tensor]) -> list[Tensor]:
    """The members' gradients; all members have one."""
    return [p.grad for p in members]  # type: ignore[misc]


def sweep(update: Callable[..., None], *columns: Sequence[Tensor | Packed]) -> None:
    """Runs an elementwise, in-place `update(list, list, ...)` over matching tensors.

    On an accelerator once over all of them, which fuses across parameters. On a processor over CHUNK numbers at a time, of one large
    tensor or of several small ones, so that an update of many passes reads memory once. Quantised columns are decoded for the update
    and encoded after it, the others are then taken in float32 too. The first column, what the update moves, is written back.
    """
    together: list[tuple[Any, ...]] = []
    count = 0
    for row in (tuple(shards.local(value) for value in row) for row in zip(*columns, strict=True)):
        size = row[0].numel()
        if any(isinstance(value, Packed) for value in row) or (row[0].is_cpu and size > CHUNK):
            _in_chunks(update, row)
            continue
        if together and row[0].is_cpu and count + size > CHUNK:
            update(*(list(column) for column in zip(*together, strict=True)))
            together, count = [], 0
        together.append(row)
        count += size
    if together:
        update(*(list(column) for column in zip(*together, strict=True)))


def fused(kernel: str, numbers: Sequence[float], update: Callable[..., None], *columns: Sequence[Tensor | Packed]) -> None:
    """`sweep`, by a kernel of `_kernels.c` for those it reaches."""
    reached, rest = _fused.divided(tuple(map(shards.local, row)) for row in zip(*columns, strict=True))
    if reached:
        _fused.elementwise(kernel, list(zip(*reached, strict=True)), numbers)
    if rest:
        sweep(update, *zip(*rest, strict=True))


def _in_chunks(update: Callable[..., None], row: tuple[Tensor | Packed, ...]) -> None:
    first = row[0]
    assert isinstance(first, Tensor)
    packed = any(isinstance(value, Packed) for value in row)
    if not all(value.is_contiguous() for value in row if isinstance(value, Tensor)):
        if not packed:
            update(*([value] for value in row))
            return
        row = tuple(value.contiguous() if isinstance(value, Tensor) else value for value in row)
    count = first.numel()
    for start in range(0, count, CHUNK):
        end = min(start + CHUNK, count)
        pieces = [_piece(value, start, end, packed) for value in row]
        update(*([piece] for piece in pieces))
        for value, piece in zip(row, pieces, strict=True):
            if isinstance(value, Packed):
                value.encode(piece, start)
            elif packed and value.dtype != torch.float32:
                value.view(-1)[start:end].copy_(piece)
    if row[0] is not first:
        first.copy_(row[0])  # type: ignore[arg-type]


def _piece(value: Tensor | Packed, start: int, end: int, packed: bool) -> Tensor:
    if isinstance(value, Packed):
        return value.decode(torch.empty(end - start, device=value.codes.device), start)
    piece = value.view(-1)[start:end]
    return piece.float() if packed else piece
