"""A teacher's stored likeliest tokens, learned beside the text or in place of it."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.objectives._cross_entropy import auto_chunk
from bessemer.objectives.next_token import STREAM, NextToken

IDS, LOGS = "teacher_ids", "teacher_logs"
Rest = Literal["even", "together"]


class SparseDistill(NextToken):
    """Cross-entropy against a teacher's stored likeliest tokens, the rest of its probability spread evenly or taken together (Wu et al. 2022, "TinyViT").

    Claim: distillation during pre-training at almost the cost of training without a teacher, whose logits are computed once.

    The stage store_logits makes them; the loader lays them beside the tokens. Where the teacher read nothing, nothing is learned from it.

    Terms: `distill` and, where `hard` is above 0, `next_token`; both counted over the weight stream "next_token".

    Args:
        hard: the part of the loss that is the next token's own; the rest is the teacher's.
        rest: the probability that was not stored is spread "even"ly over the other tokens, as in the paper, or they are one class "together", which
            tells nothing of how likely each of them is: better for text, where a few stored tokens leave much and the others are far from alike.
        z, chunk: as in next_token.

    Raises:
        RecipeError: `hard` is no part.
        DataError: there are no stored logits in the batch.
    """

    stored: ClassVar[bool] = True

    def __init__(self, *, hard: float = 0.0, rest: Rest = "even", z: float = 0.0, chunk: int | Auto = "auto") -> None:
        super().__init__(z=z, chunk=chunk)
        self.hard, self.rest = hard, rest
        if not 0 <= hard <= 1:
            raise RecipeError(f"a part from 0 to 1 is wanted, and {hard} is given", key="task.objective.hard")

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        if IDS not in batch.streams:
            raise DataError("there are no stored logits beside these tokens", key="task.objective", mend="put the stage store_logits before this one")
        terms = Terms()
        if self.hard:
            terms = super().__call__(outputs, batch)
            terms.add("next_token", terms["next_token"].sum, over=STREAM, scale=self.hard)
        ids, logs = batch.streams[IDS].flatten(0, 1), batch.streams[LOGS].flatten(0, 1)
        hidden, weights = outputs.hidden.flatten(0, 1), batch.weights[STREAM].flatten()
        size = auto_chunk(len(hidden), outputs.head.share().weight.shape[0]) if self.chunk == "auto" else self.chunk  # type: ignore[operator]
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            total = total + checkpoint(against, outputs.head, hidden[part], ids[part], logs[part], weights[part], self.rest, use_reentrant=False)
        terms.add("distill", total, over=STREAM, scale=1.0 - self.hard)
        return terms


def against(head: nn.Module, hidden: Tensor, ids: Tensor, logs: Tensor, weights: Tensor, rest: Rest = "even") -> Tensor:
    """0-d float32: the weighted sum of cross-entropies against a teacher's likeliest tokens.

    Args:
        hidden: [tokens, width].
        ids: int64 [tokens, kept].
        logs: float32 [tokens, kept], the teacher's log-probabilities; all -inf where it has none.
        weights: float32 [tokens].
    """
    logits = head(hidden).float()
    chosen, likely = logits.gather(-1, ids), logs.exp()
    told = likely.sum(-1)
    others = logits.shape[-1] - ids.shape[-1]
    left = (1.0 - told).clamp(min=0.0) * (others > 0)
    if rest == "even":
        away = (logits.sum(-1) - chosen.sum(-1)) / max(1, others)
    else:
        away = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) if others else torch.zeros_like(told)
    losses = (told + left) * logits.logsumexp(-1) - (likely * chosen).sum(-1) - left * away
    return (losses * weights * (told > 0)).sum()
