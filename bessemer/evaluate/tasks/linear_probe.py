"""What can be read off a model's representations by a straight line."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.pictures import adapter_of, chosen, label_names, labels_of, representations, store_of
from bessemer.evaluate.subject import Subject


def linear_probe(
    subject: Subject,
    *,
    examples: str | None = None,
    modality: str = "picture",
    labels: list[str] = [],
    train: int = 2048,
    test: int = 1024,
    decay: float = 1e-2,
    raw: bool = False,
) -> dict[str, Figure]:
    """Accuracy on held-out examples of a logistic regression on frozen representations, by label (Alain and Bengio 2016).

    Args:
        examples: the stage that made them; None: the only one.
        modality: what is looked at.
        labels: which facts to probe for; none named: all.
        train, test: at most so many examples of each part.
        decay: factor of the squared weights.
        raw: probe the raw values too, under LABEL_raw: the floor that a representation has to beat.

    Raises:
        DataError: there are no examples, or no such labels, or the model has no adapter for them.
    """
    store = store_of(subject, examples, "linear_probe")
    adapter = adapter_of(subject, modality, "linear_probe")
    parts = {
        part: chosen(store, part, modality, subject.few(most, 64) or most, subject.seed) for part, most in (("train", train), ("held_out", test))
    }
    views = {"": [representations(subject, adapter, store, numbers) for numbers in parts.values()]}
    if raw:
        views["_raw"] = [torch.from_numpy(store.take(modality, numbers)).flatten(1).float() for numbers in parts.values()]
    found = {}
    for name in label_names(store, labels, "linear_probe"):
        truth = [labels_of(store, numbers, name)[0] for numbers in parts.values()]
        for ending, (seen, unseen) in views.items():
            hits = fitted(seen, truth[0], decay)(unseen).argmax(-1) == truth[1]
            known = truth[1] >= 0
            if bool(known.any()):
                found[name + ending] = ratio(hits[known].numpy(), known[known].numpy(), subject.seed, f"linear_probe/{name}{ending}")
    return found


def fitted(inputs: Tensor, labels: Tensor, decay: float, steps: int = 60):
    """A function from inputs [n, size] to logits: logistic regression on standardised inputs, by L-BFGS; labels of -1 are left out."""
    with torch.enable_grad():
        known = labels >= 0
        inputs, labels = inputs[known].float(), labels[known]
        mean, spread = inputs.mean(0), inputs.std(0) + 1e-4
        x = (inputs - mean) / spread
        weight = torch.zeros(int(labels.max()) + 1, x.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight[:, :-1].T + weight[:, -1], labels) + decay * weight[:, :-1].square().sum() / 2
            value.backward()
            return value

        optimizer.step(loss)  # type: ignore[arg-type]  # torch's stub wants a float
    held = weight.detach()
    return lambda given: (given.float() - mean) / spread @ held[:, :-1].T + held[:, -1]
