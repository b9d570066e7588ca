"""The one matrix product of every layer, with what other rooms need to know of its weight."""

from __future__ import annotations

from torch import Tensor, nn

from bessemer.core.products import linear


class Linear(nn.Linear):
    """y = x W^T + b, whose weight [outputs, inputs] names its logical axes and its role.

    Attributes:
        axes: logical axis names by parameter; `parallel/` maps them to mesh axes.
        roles: "matrix", "head", "embedding" or "vector" by parameter; optimizer groups are matched on them.
        parts: sizes of the matrices stacked along the outputs (query, key, value in one product); one entry when it is
            one matrix. Orthogonalising optimizers and tensor parallelism treat each part on its own.
        residual: whether its output is added to the residual stream, which is what depth scaling acts on.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        axes: tuple[str, str],
        bias: bool = False,
        parts: tuple[int, ...] = (),
        residual: bool = False,
        role: str = "matrix",
    ) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.axes = {"weight": axes, "bias": axes[:1]}
        self.roles = {"weight": role, "bias": "vector"}
        self.parts = parts or (outputs,)
        self.residual = residual

    def reset_parameters(self) -> None:
        """Leaves memory as it is: `models/transfer.py` draws every initial value by parameter name."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
