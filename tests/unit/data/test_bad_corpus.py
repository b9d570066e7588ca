"""A corpus that is torn, altered or emptied is refused by name."""

import errno

import pyarrow
import pyarrow.parquet
import pytest

from bessemer.core.errors import ArtifactError, BessemerError, DataError, RecipeError
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus, CorpusWriter, write_corpus
from bessemer.data.document import Document
from bessemer.run.stages.clean import clean
from bessemer.run.stages.deduplicate import deduplicate


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "c", [Document(f"some text {i}", id=str(i)) for i in range(50)])


def test_truncated_shard(corpus):
    corpus.shards[0].write_bytes(corpus.shards[0].read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="truncated or altered"):
        Corpus.open(corpus.folder)
    with pytest.raises(DataError, match=r"00000-00000.parquet: can't be read as Parquet"):
        list(corpus.documents())


def test_altered_shard(corpus):
    raw = bytearray(corpus.shards[0].read_bytes())
    raw[20] ^= 0xFF
    corpus.shards[0].write_bytes(raw)
    with pytest.raises(ArtifactError, match="it was altered"):
        Corpus.open(corpus.folder)


def test_missing_shard(corpus):
    corpus.shards[0].unlink()
    with pytest.raises(ArtifactError, match="the file is missing"):
        Corpus.open(corpus.folder)


def test_shard_of_another_shape(corpus):
    pyarrow.parquet.write_table(pyarrow.table({"words": ["a"]}), corpus.shards[0])
    with pytest.raises(DataError, match="has no column domain, id"):
        list(corpus.documents())


def test_torn_counts(corpus):
    (corpus.folder / "counts.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"counts.json: is not whole JSON"):
        corpus.count  # noqa: B018


def test_no_such_folder(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        Corpus.open(tmp_path / "none")


def test_nothing_left_after_cleaning(corpus, tmp_path):
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match=r"no document is left after cleaning \(50 by gopher_quality: too few words\)"):
        clean(Work(tmp_path / "o"), corpus, rules=["gopher_quality"], processes=1)
    assert not (tmp_path / "o" / "counts.json").exists()


@pytest.mark.parametrize("function", [clean, deduplicate])
def test_empty_corpus(function, tmp_path):
    empty = write_corpus(tmp_path / "e", [])
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match="there is no document in it"):
        function(Work(tmp_path / "o"), empty)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "minhash", "bands": 200},
        {"name": "minhash", "ngram": 0},
        {"name": "minhash", "threshold": 1.5},
        {"name": "minhash", "permutations": 0},
    ],
)
def test_bad_minhash_options(method, corpus, tmp_path):
    with pytest.raises(RecipeError, match="minhash"):
        deduplicate(Work(tmp_path), corpus, methods=[method], processes=1)


def test_unknown_language(corpus, tmp_path):
    with pytest.raises(RecipeError, match="there is no language 'dee'"):
        clean(Work(tmp_path), corpus, rules=[{"name": "language", "keep": ["dee"]}], processes=1)


def test_ray_that_is_not_there(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BessemerError, match='engine: engine = "ray" needs Ray'):
        clean(Work(tmp_path), corpus, engine="ray")


def test_full_disk(tmp_path, monkeypatch):
    class Full(pyarrow.parquet.ParquetWriter):
        def write_table(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "ParquetWriter", Full)
    with pytest.raises(BessemerError, match="the disk is full"), CorpusWriter(tmp_path) as writer:
        writer.add(Document("text"))
    assert not list((tmp_path / "shards").iterdir())


def test_read_only_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BessemerError, match="can't be written"):
        CorpusWriter(tmp_path / "file")
