"""Pictures made from noise, along straight paths."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.adapters._adapter import VECTORS
from bessemer.models.layers.linear import Linear
from bessemer.objectives._examples import FromExamples, Piece, compose, normals, uniforms

STREAM = "flow"
FREQUENCIES = 32
LEAST_LEFT = 0.05
"""Of the way, that a step to the picture is taken to have before it: it divides."""


class FlowMatching(FromExamples):
    """Predicts the velocity from noise to picture at a point between them (Lipman et al. 2022, "Flow Matching"; Liu et al. 2022).

    A picture x and noise e meet at x_t = (1 - t) e + t x, where the velocity is x - e. By default the head says x, and the velocity is what leads
    there from x_t: a picture fits through a trunk narrower than a patch, noise doesn't (Li and He 2025, "Back to Basics: Let Denoising Generative
    Models Denoise"). The trunk reads, in both directions, one
    column with the time, the caption if `words` says so (left out for a share `bare` of examples, so that the model also makes
    pictures unprompted), and the patches of x_t. A trunk that has learned representations of pictures in an earlier stage starts
    ahead: that is the embedded-representation warm-up (Liu et al. 2025, "ERW") as a recipe's stages.

    Term: `flow`, the mean squared difference of velocities over a patch's values, counted over patches.

    Args:
        words: the most tokens of a caption, its end included; 0: captions aren't read.
        bare: share of examples whose caption is left out.
        predict: what the head says, the picture or the velocity itself.
        shift: times are drawn as the sigmoid of a normal number of this mean (Esser et al. 2024, section 3.1).

    Raises:
        RecipeError: a number is out of range.
    """

    def __init__(self, *, words: int = 0, bare: float = 0.1, predict: Literal["picture", "velocity"] = "picture", shift: float = 0.0) -> None:
        if words < 0 or words == 1 or not 0.0 <= bare <= 1.0:
            raise RecipeError(f"words = {words} and bare = {bare} can't be", key="objective", mend="words 0 or from 2 on, bare from 0 to 1")
        self.words, self.bare, self.predict, self.shift = words, bare, predict, shift

    @property
    def columns(self) -> int:
        return 1 + self.words + self.adapter.pieces

    def prepare(self, batch: Batch, seed: int) -> Batch:
        draw, values = batch.streams["draw"], self.raw(batch)
        time = torch.sigmoid(normals(seed, "time", draw, 1) + self.shift)
        noise = normals(seed, "noise", draw, values.shape[2] * values.shape[3]).view_as(values)
        between = (1.0 - time[..., None]) * noise + time[..., None] * values
        caption = None
        if self.words:
            left_out = uniforms(seed, "bare", draw, 1) < self.bare
            caption = torch.where(left_out, -1, batch.streams["caption"])
        return self.rows(batch, between, time[..., 0], caption, velocity=values - noise)

    def rows(self, batch: Batch, values: Tensor, time: Tensor, caption: Tensor | None, **streams: Tensor) -> Batch:
        """Rows of a time, a caption and the patches at that time; `generate` makes them too.

        Args:
            values: float32 [rows, per_row, patches, size].
            time: float32 [rows, per_row].
            caption: int64 [rows, per_row, words] or None.
        """
        pieces = [Piece(vector=True), *([Piece(tokens=caption)] if caption is not None else []), Piece(values=values)]
        made = compose(batch, pieces, self.adapter.stream, time=time, between=values, **streams)
        made.weights[STREAM] = torch.ones(values.shape[:3])
        return made

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {
            "time": Linear(2 * FREQUENCIES, width, axes=("embed", "none"), bias=True),
            "head": Linear(width, self.adapter.size, axes=("none", "embed"), bias=True, role="head"),
        }

    def before(self, batch: Batch) -> Batch:
        """Puts each example's time in its column, as waves of many lengths."""
        time = batch.streams["time"]
        rates = torch.exp(torch.linspace(0.0, math.log(1000.0), FREQUENCIES, device=time.device))
        angles = time[..., None] * rates
        batch.streams[VECTORS] = self.parts["time"](torch.cat((angles.sin(), angles.cos()), -1))
        return batch

    def velocity(self, outputs: Outputs, batch: Batch) -> Tensor:
        """float32 [rows, per_row, patches, size]."""
        said = self.parts["head"](self.view(outputs.hidden, batch)[:, :, 1 + self.words :]).float()
        if self.predict == "velocity":
            return said
        left = (1.0 - batch.streams["time"]).clamp(min=LEAST_LEFT)
        return (said - batch.streams["between"]) / left[..., None, None]

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        gap = F.mse_loss(self.velocity(outputs, batch), batch.streams["velocity"], reduction="none").mean(-1)
        terms.add(STREAM, (gap * batch.weights[STREAM]).sum())
        return terms
