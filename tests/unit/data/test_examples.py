"""Example sources and their store: scenes that are what they say, files of users, what is unreadable, the loader's order."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import choose
from bessemer.core.work import Work
from bessemer.data.example import Example, Unreadable
from bessemer.data.example_loader import ExampleLoader
from bessemer.data.example_store import Examples, ExampleWriter
from bessemer.data.examples._decode import fit
from bessemer.data.examples.folder import folder
from bessemer.data.examples.parquet import parquet
from bessemer.data.examples.scenes import COLOURS, PLACES, SHAPES, scenes
from bessemer.data.examples.web_dataset import web_dataset
from bessemer.run.stages.collect_examples import collect_examples
from tests import folders
from tests.unit.objectives import pictures


def encoded(colour=(255, 0, 0), size=(12, 8), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def test_a_scene_is_a_function_of_seed_and_number():
    first, again, other = (list(scenes(count=6, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a.values["picture"], b.values["picture"]) and a.text == b.text for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].values["picture"], other[0].values["picture"])
    assert list(scenes(count=3, seed=1))[2].text == first[2].text


def test_a_scene_shows_what_its_labels_say():
    """The named colour stands out where the named place is, more of it when larger or more, and the caption says so."""
    amounts = {}
    for scene in scenes(count=300, noise=0.0):
        picture, labels = scene.values["picture"].astype(float), scene.labels
        near = np.abs(picture - np.array(COLOURS[labels["colour"]])).max(-1) < 45
        rows, columns = np.nonzero(near)
        across, down = PLACES[labels["place"]]
        assert len(rows) >= 4
        assert abs(columns.mean() / 32 - across) < 0.2, labels
        assert abs(rows.mean() / 32 - down) < 0.2, labels
        amounts.setdefault((labels["size"], labels["number"]), []).append(len(rows))
        for name in ("number", "size", "colour", "place"):
            assert labels[name] in scene.text
        assert labels["shape"] in scene.text
    mean = {key: np.mean(value) for key, value in amounts.items()}
    assert mean["small", "one"] < mean["small", "two"] < mean["small", "three"]
    assert mean["small", "one"] < mean["large", "one"]
    assert {scene.labels["shape"] for scene in scenes(count=60)} == set(SHAPES)


def test_folders_of_pictures_with_captions(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(encoded())
    (tmp_path / "cats" / "a.txt").write_text("a red cat\n")
    (tmp_path / "b.jpg").write_bytes(encoded((0, 255, 0), kind="JPEG"))
    (tmp_path / "torn.png").write_bytes(encoded()[:40])
    (tmp_path / "fake.png").write_text("no picture")
    found = list(folder(path=str(tmp_path)))
    good = [each for each in found if isinstance(each, Example)]
    assert [(each.text, each.labels, each.id) for each in good] == [("", {}, "b.jpg"), ("a red cat", {"folder": "cats"}, "cats/a.png")]
    assert {each.where for each in found if isinstance(each, Unreadable)} == {"torn.png", "fake.png"}
    with pytest.raises(DataError, match="no such folder"):
        list(folder(path=str(tmp_path / "nowhere")))


def test_tars_of_samples(tmp_path):
    def add(archive, name, content):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        add(archive, "000.png", encoded())
        add(archive, "000.txt", b"first")
        add(archive, "sub/001.jpg", encoded(kind="JPEG"))
        add(archive, "sub/001.json", json.dumps({"caption": "second", "stars": 4}).encode())
        add(archive, "002.txt", b"without a picture")
        add(archive, "003.png", b"broken")
        add(archive, "003.cls", b"7")
    found = list(web_dataset(files=[str(tmp_path / "*.tar")]))
    assert [(each.text, each.labels) for each in found[:2]] == [("first", {}), ("second", {"stars": "4"})]
    assert [type(each) for each in found[2:]] == [Unreadable, Unreadable]
    (tmp_path / "torn.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:700])
    with pytest.raises(DataError, match="no whole tar"):
        list(web_dataset(files=[str(tmp_path / "torn.tar")]))
    with pytest.raises(DataError, match="no such file"):
        list(web_dataset(files=[str(tmp_path / "none.tar")]))


def test_parquet_of_encoded_pictures(tmp_path):
    rows = {"image": [{"bytes": encoded(), "path": None}, {"bytes": b"x", "path": None}], "says": ["red", "bad"], "stars": [3, 4]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    good, bad = parquet(files=[str(tmp_path / "a.parquet")], text="says", labels=["stars"])
    assert (good.text, good.labels, good.values["picture"].shape) == ("red", {"stars": "3"}, (8, 12, 3))
    assert isinstance(bad, Unreadable)
    with pytest.raises(DataError, match="no column 'img'"):
        list(parquet(files=[str(tmp_path / "a.parquet")], picture="img"))


def test_datasets_from_the_hub_or_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    from bessemer.data.examples.hugging_face import hugging_face

    given = datasets.Dataset.from_dict({"image": [{"bytes": encoded(), "path": None}], "says": ["red"]})
    given.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    (found,) = hugging_face(path=str(tmp_path / "set"), text="says")
    assert (found.text, found.values["picture"].shape) == ("red", (8, 12, 3))


def test_pictures_are_cut_to_their_middle_square():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    assert (fit(wide, 4) == 200).all()
    assert fit(wide, 8).shape == (8, 8, 3)


def test_a_store_holds_what_it_was_given_and_what_is_absent_stays_absent(tmp_path):
    writer = ExampleWriter(tmp_path, 8, 0)
    sound = np.arange(6, dtype=np.float32)
    given = [
        Example({"picture": np.full((8, 8, 3), 9, np.uint8)}, "nine", {"a": "b"}, "s", "0"),
        Example({"sound": sound}, "", {}, "s", "1"),
        Example({"picture": np.full((8, 8, 3), 5, np.uint8), "sound": 2 * sound}, "five", {}, "s", "2"),
    ]
    list(writer.add_all(given))
    writer.close(0.0)
    store = Examples(tmp_path, {"kind": "examples", "hash": "", "info": {}})
    assert store.members("train", "picture").tolist() == [0, 2]
    assert store.members("train", "sound").tolist() == [1, 2]
    assert store.members("train", captioned=True).tolist() == [0, 2]
    assert store.take("picture", np.array([[0, 2]])).shape == (1, 2, 8, 8, 3)
    assert store.take("picture", np.array([2, 0]))[:, 0, 0, 0].tolist() == [5, 9]
    assert store.take("sound", np.array([2]))[0].tolist() == (2 * sound).tolist()
    with pytest.raises(DataError, match="no 'clip'"):
        store.members("train", "clip")


def test_unreadable_items_are_counted_and_passed_over_up_to_a_limit(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded() if number == 1 else b"torn")
    out = tmp_path / "out"
    out.mkdir()
    source = {"name": "folder", "path": str(tmp_path / "in")}
    work = Work(out)
    collect_examples(work, sources=[choose("data/examples", source)], unreadable=2)
    assert (work.info["examples"], work.info["unreadable"]) == (1, 2)
    with pytest.raises(DataError, match="can't be read"):
        collect_examples(Work(out), sources=[choose("data/examples", source)], unreadable=1)
    with pytest.raises(RecipeError):
        collect_examples(Work(out), sources=[], unreadable=1)


def test_values_of_unlike_shapes_are_refused(tmp_path):
    writer = ExampleWriter(tmp_path, 8, 0)
    with pytest.raises(DataError, match="shape"):
        list(writer.add_all([Example({"sound": np.zeros(4, np.float32)}), Example({"sound": np.zeros(5, np.float32)})]))


def test_the_loader_goes_through_every_example_once_an_epoch():
    objective = pictures.made("captioning")
    loader = pictures.loader(objective)
    count = len(loader.found)
    rows = -(-2 * count // loader.per_row)
    whole = loader.batch(0, rows)
    numbers = whole.streams["example"].flatten()
    for epoch in (0, 1):
        assert sorted(numbers[epoch * count : (epoch + 1) * count].tolist()) == loader.found.tolist()
    assert numbers[:count].tolist() != numbers[count : 2 * count].tolist()
    parts = [loader.batch(0, rows, rank=rank, ranks=3).streams["example"] for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole.streams["example"])
    assert torch.equal(loader.batch(5, 2).streams["picture"], whole.streams["picture"][5:7])
    with pytest.raises(DataError, match="no example"):
        ExampleLoader(_without_captions(), pictures.Captions(), modality="picture", per_row=1, length=40, words=8)


def _without_captions():
    writer = ExampleWriter(folders.folder(), 8, 0)
    list(writer.add_all([Example({"picture": np.zeros((8, 8, 3), np.uint8)})]))
    writer.close(0.0)
    return Examples(writer.folder, {"kind": "examples", "hash": "", "info": {}})
