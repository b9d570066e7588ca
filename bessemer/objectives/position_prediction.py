"""Where a token stood, told from the others alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import torch
from torch import nn
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.layers.linear import Linear
from bessemer.objectives._objective import Objective
from bessemer.objectives._segments import draws, in_place, segments


class PositionPrediction(Objective):
    """Classifies the place of every token of a shuffled text (Zhai et al. 2022, "Position Prediction as an Effective Pretraining Strategy").

    Documents are cut into windows; the tokens of a window are shuffled, all have position 0, and each is to say which place
    it had. Only a part of them, the context, is seen by all; the others are told from it. Nothing else gives a place away, for
    what a token sees besides the context comes before it in the shuffled order.

    Terms: `position`, cross-entropy counted over all tokens; `placed`, a figure only: the part of tokens placed rightly.

    Args:
        window: tokens of a window, which is the number of places to tell apart.
        context: the part of a window that is seen by all.

    Raises:
        RecipeError: an option is out of its range.
    """

    def __init__(self, *, window: int = 32, context: float = 0.5) -> None:
        self.window, self.context = window, context
        if window < 2:
            raise RecipeError(f"a window has at least 2 places, and {window} is given", key="task.objective.window")
        if not 0 < context <= 1:
            raise RecipeError(f"a part above 0 and up to 1 is wanted, and {context} is given", key="task.objective.context")

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {"place": Linear(width, self.window, axes=("none", "embed"), role="head")}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        text = in_place(batch)
        tokens, numbers, place, origin = (text.clone(), *(torch.zeros_like(text) for _ in range(3)))
        seen, by_row, following = torch.zeros_like(text, dtype=torch.bool), draws(batch, seed, "positions"), [count(1) for _ in range(batch.rows)]
        for each in segments(batch):
            for start in range(each.start, each.stop, self.window):
                columns = slice(start, min(start + self.window, each.stop))
                order = torch.from_numpy(by_row[each.row].permutation(columns.stop - start))
                tokens[each.row, columns] = text[each.row, columns][order]
                place[each.row, columns], origin[each.row, columns] = order, start + order
                seen[each.row, start : start + max(1, round(self.context * len(order)))] = True
                numbers[each.row, columns] = next(following[each.row])
        weights = {"position": batch.weights["next_token"].gather(1, origin) * (numbers > 0)}
        positions = torch.zeros_like(batch.positions)
        return replace(
            batch, tokens=tokens, positions=positions, segments=numbers, open=seen, weights=weights, streams=batch.streams | {"place": place}
        )

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms, weights = Terms(), batch.weights["position"]
        logits = self.parts["place"](outputs.hidden).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch.streams["place"].flatten(), reduction="none").view_as(weights)
        terms.add("position", (losses * weights).sum())
        terms.add("placed", ((logits.argmax(-1) == batch.streams["place"]) * weights).sum(), over="position", scale=0.0)
        return terms
