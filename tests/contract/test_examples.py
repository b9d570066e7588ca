"""Every source of examples: the same order each time, and what can't be read yielded as such, between what can."""

import io
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from bessemer.core import registry
from bessemer.data.example import Example, Unreadable

NAMES = registry.names("data/examples")


def encoded(red):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


ITEMS = {"c": encoded(30), "a": encoded(10), "b": b"no picture", "d": encoded(40)}


def folder(place):
    for name, content in ITEMS.items():
        (place / f"{name}.png").write_bytes(content)
    return {"path": str(place)}


def parquet(place):
    pyarrow.parquet.write_table(pyarrow.table({"image": list(ITEMS.values())}), place / "a.parquet")
    return {"files": [str(place / "a.parquet")]}


def web_dataset(place):
    with tarfile.open(place / "a.tar", "w") as archive:
        for name, content in ITEMS.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"files": [str(place / "a.tar")]}


def hugging_face(place):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None} for content in ITEMS.values()]})
    rows.cast_column("image", datasets.Image()).save_to_disk(place / "set")
    return {"path": str(place / "set")}


WRITTEN = {"folder": folder, "parquet": parquet, "web_dataset": web_dataset, "hugging_face": hugging_face}
"""What lays ITEMS down for a source that reads files, and the options to find them; one that makes its examples is in MADE."""
MADE = {"scenes": {"count": 4}}


def plain(found):
    return [
        (each.id, each.text, each.labels, {k: v.tolist() for k, v in each.values.items()}) if isinstance(each, Example) else each for each in found
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_order_each_time_and_the_unreadable_as_such(name, tmp_path):
    assert name in WRITTEN or name in MADE, f"say in {__name__} what '{name}' is to read"
    choice = registry.choose("data/examples", {"name": name, **(WRITTEN[name](tmp_path) if name in WRITTEN else MADE[name])})
    first, again = list(choice()), list(choice())
    assert plain(first) == plain(again)
    good = [each for each in first if isinstance(each, Example)]
    assert len({each.id for each in good}) == len(good) > 1
    assert all(each.values["picture"].dtype == np.uint8 for each in good)
    if name in WRITTEN:
        assert (len(good), [type(each) for each in first].count(Unreadable)) == (3, 1)
