"""The `ranks` fixture: see tests/ranks/pool.py for how it is used."""

from collections.abc import Iterator

import pytest

from tests.ranks.pool import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Calls a function on several ranks at once: `ranks(function, *arguments, count=4)` -> results by rank."""
    pool = Pool()
    yield pool
    pool.close()
