"""Hidden patches of a picture, predicted in place."""

from __future__ import annotations

from torch import Tensor, nn

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.layers.linear import Linear
from bessemer.objectives._examples import FromExamples, Piece, compose, shuffled

STREAM = "simmim"


class SimMIM(FromExamples):
    """Predicts the values of hidden patches by one linear layer, the trunk seeing blanks in their place (Xie et al. 2021, "SimMIM").

    Term: `simmim`, the mean absolute difference over a hidden patch's values, counted over hidden patches.

    Args:
        ratio: share of patches that are hidden.

    Raises:
        RecipeError: the ratio hides all patches or none.
    """

    def __init__(self, *, ratio: float = 0.6) -> None:
        if not 0.0 < ratio < 1.0:
            raise RecipeError(f"a share between 0 and 1 is wanted, and {ratio} is given", key="objective.ratio")
        self.ratio = ratio

    @property
    def columns(self) -> int:
        return self.adapter.pieces

    def prepare(self, batch: Batch, seed: int) -> Batch:
        values = self.raw(batch)
        order = shuffled(seed, "hidden", batch.streams["draw"], self.columns)
        hidden = order < max(1, round(self.ratio * self.columns))
        return compose(batch, [Piece(values=values, blank=hidden, weights={STREAM: hidden.float()})], self.adapter.stream)

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {"head": Linear(width, self.adapter.size, axes=("none", "embed"), bias=True, role="head")}

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        found = self.parts["head"](self.view(outputs.hidden, batch)).float()
        wanted = self.held(batch)
        weights: Tensor = self.view(batch.weights[STREAM], batch)
        terms.add(STREAM, ((found - wanted).abs().mean(-1) * weights).sum())
        return terms
