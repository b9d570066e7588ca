"""Artifacts: whole and unaltered or not opened."""

from __future__ import annotations

import pytest

from bessemer.core.artifact import Artifact, digest, seal
from bessemer.core.errors import ArtifactError


class Thing(Artifact):
    kind = "thing"


class Other(Artifact):
    kind = "other"


def made(folder, text="abc", **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "file.txt").write_text(text)
    return seal(folder, "thing", **{"recipe": {"a": 1}, "parents": {"p": "h"}, "info": {"n": 3}} | more)


def test_what_was_sealed_opens(tmp_path):
    made(tmp_path / "x")
    thing = Thing.open(tmp_path / "x")
    assert thing.info == {"n": 3}
    assert Artifact.open(tmp_path / "x").hash == thing.hash


def test_the_hash_is_of_content_options_and_parents_alone(tmp_path):
    first = made(tmp_path / "a")["hash"]
    assert made(tmp_path / "b", info={"other": 1}, seconds=5.0, key="k")["hash"] == first
    assert made(tmp_path / "c", text="abd")["hash"] != first
    assert made(tmp_path / "d", recipe={"a": 2})["hash"] != first
    assert made(tmp_path / "e", parents={"p": "i"})["hash"] != first


def test_sealing_twice_changes_nothing(tmp_path):
    assert made(tmp_path / "x")["hash"] == made(tmp_path / "x")["hash"]


def test_another_kind_is_refused(tmp_path):
    made(tmp_path / "x")
    with pytest.raises(ArtifactError, match="holds a thing where an other is wanted"):
        Other.open(tmp_path / "x")


@pytest.mark.parametrize("change", ["abd", "ab", "abcd", None])
def test_a_changed_file_is_found(tmp_path, change):
    made(tmp_path / "x")
    file = tmp_path / "x/deep/file.txt"
    file.unlink() if change is None else file.write_text(change)
    with pytest.raises(ArtifactError) as caught:
        Thing.open(tmp_path / "x")
    assert caught.value.file == file


def test_without_verifying_only_sizes_are_looked_at(tmp_path):
    made(tmp_path / "x")
    (tmp_path / "x/deep/file.txt").write_text("abd")
    Thing.open(tmp_path / "x", verify=False)
    (tmp_path / "x/deep/file.txt").write_text("ab")
    with pytest.raises(ArtifactError):
        Thing.open(tmp_path / "x", verify=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"kind": "thing"}', "\x00"])
def test_a_manifest_that_is_none(tmp_path, content):
    made(tmp_path / "x")
    (tmp_path / "x/manifest.json").write_text(content)
    with pytest.raises(ArtifactError):
        Thing.open(tmp_path / "x")


def test_a_manifest_with_values_of_the_wrong_kind(tmp_path):
    made(tmp_path / "x")
    for files in ('{"a": 3}', "[]", '{"a": {"bytes": "x"}}', '{"../../etc/passwd": {"bytes": 1, "xxh3": ""}}'):
        (tmp_path / "x/manifest.json").write_text(f'{{"kind": "thing", "format": 1, "hash": "h", "files": {files}, "info": {{}}}}')
        with pytest.raises(ArtifactError):
            Thing.open(tmp_path / "x")


def test_digest_is_blind_to_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
