"""What follows from a model's size and a mesh where a recipe leaves it open."""

import pytest

from bessemer.core import device
from bessemer.core.mesh import Mesh
from bessemer.train import dial


@pytest.mark.parametrize(
    ("mesh", "rows", "length", "wanted"),
    [
        ({}, 16, 256, 8),
        ({"data": 2}, 16, 256, 16),  # each rank as much as one alone
        ({"data": 2}, 8, 512, 8),
        ({"replica": 2, "data": 2}, 64, 256, 32),
        ({"context": 2}, 8, 512, 8),  # half of each row
        ({"tensor": 4}, 8, 512, 4),
        ({"data": 3}, 12, 512, 12),
        ({"data": 3}, 8, 512, 8),  # nothing gives all as many
        ({"data": 8}, 8, 4096, 8),  # a row each, however long
        ({"pipe": 2}, 16, 256, 4),
        ({"pipe": 4}, 4, 256, 1),
        ({"data": 2, "pipe": 2}, 32, 256, 8),
    ],
)
def test_each_rank_gets_a_micro_batch_of_its_own_size(mesh, rows, length, wanted, monkeypatch):
    monkeypatch.setattr(device, "is_accelerator", lambda: False)
    assert dial.micro_rows(rows, length, Mesh.of(mesh)) == wanted
