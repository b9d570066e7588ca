"""Gathering pictures and what else there is beside text."""

from __future__ import annotations

from typing import Annotated

from bessemer.core import files
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice, Kind
from bessemer.core.work import Work
from bessemer.data.example_store import Examples, ExampleWriter

SMOKE_COUNT = 64


def collect_examples(
    work: Work,
    *,
    sources: list[Annotated[Choice, Kind("data/examples")]],
    picture: int = 32,
    held_out: float = 0.1,
    unreadable: int = 100,
) -> Examples:
    """Reads examples from sources into a store that training maps into memory.

    Args:
        sources: where they come from.
        picture: pictures are cut to their middle square and scaled to this edge, in pixels.
        held_out: the fraction kept from training; by a hash of the id, so an example never changes side.
        unreadable: how many items that can't be read are counted and passed over before the stage gives up.

    Raises:
        DataError: a source can't be read, too many items can't, or there is none.
    """
    if not sources or picture < 1 or not 0 <= held_out < 1 or unreadable < 0:
        problem = f"{len(sources)} sources, picture = {picture}, held_out = {held_out} and unreadable = {unreadable} can't be"
        raise RecipeError(problem, key="collect_examples")
    writer = ExampleWriter(work.out, picture, unreadable)
    with files.disk_errors(work.out):
        for source in sources:
            began = len(writer.rows)
            for count in writer.add_all(source()):
                if count % 256 == 0:
                    work.progress(count, None, "examples")
                if work.smoke and count - began >= SMOKE_COUNT:
                    break
        work.info |= writer.close(max(held_out, 0.25) if work.smoke and held_out else held_out)
    if work.info["unreadable"]:
        work.note(f"{work.info['unreadable']} items can't be read and were passed over, such as {work.info['unreadable_where'][0]}")
    return None  # type: ignore[return-value]  # the runner seals and opens it
