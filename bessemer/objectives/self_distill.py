"""Another objective, with the states held near those of an earlier self."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from bessemer.core.artifact import MANIFEST, newest
from bessemer.core.batch import TOKENS, Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice, Kind
from bessemer.core.terms import Terms
from bessemer.data.special import Words
from bessemer.models.package import Model
from bessemer.objectives._objective import Objective


class SelfDistill(Objective):
    """Further pre-training from the first weights, the hidden states drawn to those of the model further pre-trained before (Lee et al. 2023, "Self-Distillation").

    Claim: better after tuning on a small domain than plain further pre-training, which overfits to it.

    The recipe's first train stage makes the teacher; the second begins from the same model as the first and names the teacher here. Both
    read the same batch.

    Terms: those of the base objective, and `distance`, the squared distance of a token's states, mean over the width, counted over
    all tokens.

    Args:
        teacher: folder of the teacher's model, or of a run that made it.
        base: what else is learned.
        weight: factor of the distance.

    Raises:
        RecipeError: there is no such model, or it has another width or a smaller vocabulary.
    """

    def __init__(
        self,
        *,
        teacher: str,
        base: Annotated[Choice, Kind("objectives")] = "masked_language",  # type: ignore[assignment]
        weight: float = 1.0,
    ) -> None:
        self.base: Objective = base()
        self.folder, self.weight = teacher, weight
        self.unit, self.adapter = self.base.unit, self.base.adapter

    def read(self, tokenizer: Words) -> None:
        self.base.read(tokenizer)
        folder = Path(self.folder)
        found = folder if (folder / MANIFEST).is_file() else newest(folder, Model.kind) if folder.is_dir() else None
        if found is None:
            raise RecipeError(f"there is no model in '{self.folder}'", key="task.objective.teacher", mend="name the folder of a train stage")
        teacher: Any = Model.open(found).build()
        self.teacher = teacher.requires_grad_(False).eval()
        if self.teacher.vocabulary < tokenizer.vocabulary_size:
            problem = f"the teacher knows {self.teacher.vocabulary} tokens, and the tokenizer has {tokenizer.vocabulary_size}"
            raise RecipeError(problem, key="task.objective.teacher", mend="name a teacher trained with this tokenizer")

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return self.base.prepare(batch, seed)

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return self.base.modules(width, vocabulary)

    @property
    def acts_before(self) -> bool:
        return self.base.acts_before

    def before(self, batch: Batch) -> Batch:
        self.base.parts = self.parts
        return self.base.before(batch)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        self.base.parts = self.parts
        terms = self.base(outputs, batch)
        with torch.no_grad():
            wanted = self.teacher.to(outputs.hidden.device)(batch).hidden
        if wanted.shape != outputs.hidden.shape:
            problem = f"the teacher's states have {wanted.shape[-1]} values, and the model's have {outputs.hidden.shape[-1]}"
            raise RecipeError(problem, key="task.objective.teacher", mend="a teacher is of the model's own shape")
        distance = (outputs.hidden.float() - wanted.float()).square().mean(-1)
        if batch.segments is not None:
            distance = distance * (batch.segments != 0)
        terms.add("distance", distance.sum(), over=TOKENS, scale=self.weight)
        return terms
