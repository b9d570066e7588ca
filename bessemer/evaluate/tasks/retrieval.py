"""Finding a picture's caption among others, and a caption's picture."""

from __future__ import annotations

import numpy as np

from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.pictures import Pairs, chosen, store_of
from bessemer.evaluate.subject import Subject


def retrieval(
    subject: Subject, *, examples: str | None = None, task: str | None = None, pool: int = 200, at: list[int] = [1, 5]
) -> dict[str, Figure]:
    """How often the right partner is among the first found, both ways, over held-out examples with captions that differ (Young et al. 2014).

    Args:
        examples: the stage that made them; None: the only one.
        task: the model's contrastive task to compare by; None: the only one.
        pool: examples compared with each other; by chance one of `pool` is right.
        at: how many of the first found are looked at.

    Raises:
        DataError: there are no examples with captions.
        RecipeError: the model was trained on no such task.
    """
    store, pairs = store_of(subject, examples, "retrieval"), Pairs(subject, task)
    numbers = chosen(store, "held_out", pairs.objective.adapter.modality, len(store.texts), subject.seed, captioned=True)
    _, first = np.unique([store.texts[number] for number in numbers.tolist()], return_index=True)
    numbers = numbers[np.sort(first)][: subject.few(pool, 16)]
    sides = pairs.of_examples(store, numbers)
    likeness = pairs.compare(sides, sides)
    found = {}
    for name, table in (("caption", likeness), ("picture", likeness.T)):
        place = (table > table.diagonal()[:, None]).sum(-1).numpy()
        for count in at:
            found[f"{name}_at_{count}"] = ratio(place < count, np.ones(len(place)), subject.seed, f"retrieval/{name}/{count}")
    return found
