"""Mixes whose shares change while a model trains: what they are asked, and what they may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bessemer.core.progress import Progress


@dataclass(frozen=True)
class View:
    """What a mix may look at before a step.

    Attributes:
        progress: where the run stands.
        epochs: source -> how many times it was gone through so far.
        measure: source -> nats per token of its held-out documents under the model as it is. It runs the model, so it is asked
            for seldom; every rank gets the same figures.
    """

    progress: Progress
    epochs: Mapping[str, float]
    measure: Callable[[], Mapping[str, float]]


@runtime_checkable
class Online(Protocol):
    """A mix that is asked again before every step. Between its answers the shares stay, and the loader records them with the
    sample they hold from, so the order of the data is a function of what is in the checkpoint.

    Attributes:
        shares: what holds now, by source, summing to one.
    """

    shares: dict[str, float]

    def look(self, view: View) -> dict[str, float] | None:
        """New shares from the coming step on; None leaves them."""
        ...

    def state(self) -> dict[str, Any]:
        """All it remembers, as JSON can hold it."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The same in proportion, summing to one."""
    total = sum(weights.values())
    return {name: value / total for name, value in weights.items()}


def present(sizes: Mapping[str, int]) -> list[str]:
    """The sources that have any text."""
    return [name for name, size in sizes.items() if size]
