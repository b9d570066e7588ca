"""What a stage is handed."""

from __future__ import annotations

import pickle

import pytest

from bessemer.core.errors import ArtifactError, BessemerError, neighbours
from bessemer.core.work import Stopped, Work


def test_a_stage_that_never_asks_is_stopped_in_its_next_progress(tmp_path):
    asked = False
    work = Work(tmp_path, stop_asked=lambda: asked)
    work.progress(1, 2, "steps")
    asked = True
    with pytest.raises(Stopped):
        work.progress(2, 2, "steps")


def test_a_stage_that_asks_stops_itself(tmp_path):
    work = Work(tmp_path, stop_asked=lambda: True)
    assert work.stopping
    work.progress(1, 2, "steps")


def test_an_error_names_place_and_mend_and_survives_a_process_border():
    error = ArtifactError("it is torn", file="a.bin", key="w.1", mend="make it anew")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ArtifactError
    assert str(again) == str(error) == "a.bin: w.1: it is torn\n  mend: make it anew"
    assert isinstance(again, BessemerError)


def test_neighbours():
    assert neighbours("muonn", ["muon", "adamw"]) == "did you mean 'muon'?"
    assert neighbours("zzz", ["b", "a"]) == "there is a, b"
    assert neighbours("zzz", [str(n) for n in range(100)]) is None
    assert neighbours("zzz", []) is None
