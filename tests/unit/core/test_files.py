"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from bessemer.core import files
from bessemer.core.errors import ArtifactError, BessemerError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    place = tmp_path / "a.txt"
    files.write(place, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BessemerError, match="disk is full") as caught:
        files.write(place, "new")
    assert caught.value.file == place
    assert place.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made_as_needed_and_files_are_readable_by_all(tmp_path):
    files.write(tmp_path / "a/b/c", b"x")
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o644


def test_writing_where_a_folder_stands(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(BessemerError, match="can't be written"):
        files.write(tmp_path / "a", "x")


def test_writing_under_a_file(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(BessemerError, match="can't be written"):
        files.write(tmp_path / "a/b", "x")


def test_json_goes_and_comes(tmp_path):
    files.write_json(tmp_path / "a", {"ü": [1, None]})
    assert files.read_json(tmp_path / "a") == {"ü": [1, None]}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_what_is_no_json(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        files.read_json(tmp_path / "a")
    assert caught.value.file == tmp_path / "a"


def test_checksum_is_of_the_content_alone(tmp_path):
    big = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(big)
    (tmp_path / "b").write_bytes(big)
    assert files.checksum(tmp_path / "a") == files.checksum(tmp_path / "b")
    (tmp_path / "b").write_bytes(big[:-1] + bytes([big[-1] ^ 1]))
    assert files.checksum(tmp_path / "a") != files.checksum(tmp_path / "b")


def test_a_folder_takes_anothers_place(tmp_path):
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["new"]


def test_a_folder_whose_replacing_was_cut_short_comes_back(tmp_path, monkeypatch):
    """Killed between the two renames, the place is empty: the old folder must not be lost with the new one's coming."""
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    real, calls = os.replace, []

    def cut_short(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", cut_short)
    with pytest.raises(KeyboardInterrupt):
        files.replace_folder(tmp_path / "new", tmp_path / "place")
    monkeypatch.undo()
    assert (tmp_path / "place/place").exists()
    assert (tmp_path / "new/new").exists()
