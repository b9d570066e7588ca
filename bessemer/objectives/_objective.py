"""What every objective is: how a batch is prepared for it, which parameters belong to it, and what it adds to the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from bessemer.core.batch import Batch, Outputs
from bessemer.core.collectives import Along
from bessemer.core.terms import Terms

if TYPE_CHECKING:
    from bessemer.data.special import Words


class Objective(ABC):
    """One task's way of learning. A method is a subclass in a file of its name; its options stand after `*` in `__init__`.

    In a run its parts are called in this order: `read` and `modules` once, `prepare` for every batch on the data side,
    then on the device `before`, the trunk's own pass, and the objective itself.

    Attributes:
        unit: consecutive rows, by sample number, that must stay together in one micro-batch: 1, or the rows that hold one
            group of negatives. The rows of a batch are always whole units.
        parts: the modules of this task as the model holds them, under `tasks.NAME`; empty for most.
        adapter: how inputs other than tokens enter the trunk (models/adapters), or None.
        stored: whether it reads a teacher's stored logits, which the loader then lays beside the tokens.
        ranks: those that share the rows of each micro-batch, for objectives that compare rows with each other.
    """

    unit: int = 1
    stored: ClassVar[bool] = False
    parts: nn.ModuleDict = nn.ModuleDict()
    adapter: Any = None
    ranks: Along = Along()

    def read(self, tokenizer: Words) -> None:  # noqa: B027 - most objectives need no special token
        """Looks up the special tokens it needs.

        Raises:
            RecipeError: the tokenizer lacks one.
        """

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """The batch with everything the objective reads and every weight stream its terms are counted over.

        Runs before the counts are taken. Every draw is keyed by `seed` and the batch's `samples` alone, so the result does
        not depend on how rows were cut into batches.
        """
        return batch

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        """The parameters that belong to the task: heads, projections, temperatures; initialised by models/transfer.py.

        They depend on the options and the adapter alone, not on `read`: a saved package builds them again without a tokenizer.
        """
        return {}

    @property
    def acts_before(self) -> bool:
        """Whether `before` does anything."""
        return type(self).before is not Objective.before

    def before(self, batch: Batch) -> Batch:
        """What happens on the device just before the trunk reads the batch; counts stay those of `prepare`."""
        return batch

    @abstractmethod
    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        """The objective's terms: sums, each over a weight stream of the batch."""
