"""Views of a picture that predict one another, with embeddings held to a Gaussian and no teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bessemer.core import rng
from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.layers.linear import Linear
from bessemer.models.layers.mlp import mlp
from bessemer.models.layers.norm import norm
from bessemer.objectives._contrast import gathered, pooled
from bessemer.objectives._examples import FromExamples, Piece, compose
from bessemer.objectives._views import views

PREDICTED, GAUSSIAN = "predicted", "gaussian"
KNOTS, REACH = 17, 5.0


class LeJEPA(FromExamples):
    """Each view's embedding is to equal the mean of all views', and all embeddings an isotropic Gaussian (Balestriero and LeCun 2025, "LeJEPA").

    The second part, SIGReg, projects the embeddings on random directions and compares each projection's characteristic function
    with the Gaussian's (Epps and Pulley 1983). It keeps embeddings from collapsing without a teacher, a stop of gradients or a
    schedule. As a statistic of many embeddings it is taken over groups of `group` rows, which always meet in one micro-batch,
    over all ranks that share it; the directions are keyed by the group's first sample.

    Terms: `predicted`, over examples, the mean squared distance of a view's embedding from the mean; `gaussian`, over groups.

    Args:
        views: of each picture.
        group: rows whose embeddings are tested together.
        size: of an embedding.
        inner: width of the projector's hidden layer.
        slices: random directions.
        balance: lambda, the Gaussian part's factor; that of the prediction is 1 - lambda.
        least: the least area of a crop.
        colour: how far brightness and channels vary.
        flip: mirror half of the views.

    Raises:
        RecipeError: a number is out of range.
    """

    def __init__(
        self,
        *,
        views: int = 2,
        group: int = 8,
        size: int = 32,
        inner: int = 128,
        slices: int = 64,
        balance: float = 0.05,
        least: float = 0.4,
        colour: float = 0.2,
        flip: bool = False,
    ) -> None:
        if views < 2 or min(group, size, inner, slices) < 1 or not 0 < balance < 1 or not 0 < least <= 1 or colour < 0:
            raise RecipeError("views are at least 2, group, size, inner and slices at least 1, balance and least between 0 and 1", key="objective")
        self.views, self.unit, self.size, self.inner, self.slices = views, group, size, inner, slices
        self.balance, self.least, self.colour, self.flip = balance, least, colour, flip

    @property
    def columns(self) -> int:
        return self.views * self.adapter.pieces

    def prepare(self, batch: Batch, seed: int) -> Batch:
        draw = batch.streams["draw"]
        found = views(batch.streams[self.adapter.modality], draw, seed, self.views, least=self.least, colour=self.colour, flip=self.flip)
        pieces = [Piece(segment=number, values=self.adapter.cut(found[:, :, number])) for number in range(self.views)]
        made = compose(batch, pieces, self.adapter.stream)
        assert batch.samples is not None
        first = batch.samples // self.unit * self.unit
        made.streams["directions"] = torch.from_numpy(rng.normals(rng.key(seed, "directions"), first.numpy(), self.slices * self.size))
        made.weights = {PREDICTED: torch.ones(draw.shape), GAUSSIAN: (batch.samples == first).float()}
        return made

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {
            "norm": norm("rms", width, 1e-6),
            "mlp": mlp("gelu", width, self.inner, False),
            "out": Linear(width, self.size, axes=("none", "embed")),
        }

    def embed(self, outputs: Outputs, batch: Batch) -> Tensor:
        """float32 [rows, per_row, views, size]."""
        states = self.view(outputs.hidden, batch)
        apart = states.view(*states.shape[:2], self.views, self.adapter.pieces, -1)
        pool = pooled(apart, torch.ones(apart.shape[:-1], dtype=torch.bool, device=apart.device))
        return self.parts["out"](pool + self.parts["mlp"](self.parts["norm"](pool))).float()

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        found = self.embed(outputs, batch)
        gap = (found - found.mean(2, keepdim=True)).square().mean((2, 3))
        terms.add(PREDICTED, (gap * batch.weights[PREDICTED]).sum(), scale=1.0 - self.balance)
        everyone = gathered(found, self.ranks)
        with torch.autocast(found.device.type, enabled=False):
            total = everyone.sum() * 0.0  # ranks meet in its backward pass, those too that hold no group's first row
            for row in [row for row, weight in enumerate(batch.weights[GAUSSIAN].tolist()) if weight]:
                start = self.ranks.index * found.shape[0] + row
                directions = batch.streams["directions"][row].view(self.slices, self.size)
                group = everyone[start : start + self.unit].flatten(0, 1).movedim(1, 0)
                total = total + sigreg(group, directions) * batch.weights[GAUSSIAN][row]
        terms.add(GAUSSIAN, total, scale=self.balance)
        return terms


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """How far embeddings are from a standard Gaussian along some directions: the mean Epps-Pulley statistic.

    For projections x_1 .. x_n, n times the integral over t from -5 to 5 of |mean exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by
    the trapezoid rule over 17 points.

    Args:
        embeddings: float32 [sets, n, size]; each set is tested by itself.
        directions: float32 [directions, size]; their lengths don't matter.
    """
    points = torch.linspace(-REACH, REACH, KNOTS, device=embeddings.device)
    expected = torch.exp(-points.square() / 2)
    along = embeddings @ (directions / directions.norm(dim=-1, keepdim=True)).T
    angles = along[..., None] * points
    gap = (angles.cos().mean(1) - expected).square() + angles.sin().mean(1).square()
    return torch.trapezoid(gap * expected, points, dim=-1).mean() * embeddings.shape[1]


def gaussian_level() -> float:
    """What the statistic is on average for embeddings that are Gaussian: 1.06, whatever their number.

    The expected squared gap at t is (1 - exp(-t^2)) / n.
    """
    points = torch.linspace(-REACH, REACH, KNOTS, dtype=torch.float64)
    weight = torch.exp(-points.square() / 2)
    return float(torch.trapezoid((1 - torch.exp(-points.square())) * weight, points))
