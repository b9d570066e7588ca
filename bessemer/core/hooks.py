"""Calls that torch makes while it differentiates, which keep nothing alive."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakMethod

from torch import Tensor


def when_accumulated(parameter: Tensor, method: Callable[[Tensor], None]) -> None:
    """Calls a bound method with the parameter whenever its gradient has been accumulated, as long as the method's object lives.

    torch holds its hooks where no garbage collection looks: one that holds its object, and that the parameter, keeps both for good.
    """
    weak = WeakMethod(method)

    def call(parameter: Tensor) -> None:
        found = weak()
        if found is not None:
            found(parameter)

    parameter.register_post_accumulate_grad_hook(call)  # type: ignore[attr-defined]
