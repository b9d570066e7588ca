import errno
import json
import os

import numpy as np
import pytest

from bessemer.core.errors import ArtifactError, BessemerError, DataError, RecipeError
from bessemer.core.work import Work
from bessemer.data.corpus import CorpusWriter, write_corpus
from bessemer.data.held_out import held_out_batches
from bessemer.data.loader import Loader
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokenizer_read import read_tokenizer
from bessemer.data.tokens import META, SHARDS, Tokens
from bessemer.run.stages.load_tokenizer import load_tokenizer
from bessemer.run.stages.tokenize import tokenize
from bessemer.run.stages.train_tokenizer import train_tokenizer
from tests.folders import folder
from tests.unit.data.token_stores import documents, small_corpus, small_tokenizer, small_tokens, store, train


def copied():
    return store(small_corpus(), small_tokenizer())


def shard(tokens, ending):
    return sorted((tokens.folder / SHARDS).glob(f"*{ending}"))[0]


def test_an_empty_corpus_is_refused():
    empty = write_corpus(folder(), [])
    with pytest.raises(DataError, match="no documents"):
        train_tokenizer(Work(folder()), empty)
    with pytest.raises(DataError, match="no documents"):
        tokenize(Work(folder()), empty, small_tokenizer())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": 257}, "no room for 256 bytes and 2"),
        ({"specials": []}, "special tokens"),
        ({"specials": ["<|end|>", "<|end|>"]}, "special tokens"),
        ({"split": "(["}, "regular expression"),
    ],
)
def test_options_no_tokenizer_can_have_are_refused(options, words):
    with pytest.raises(RecipeError, match=words) as caught:
        train_tokenizer(Work(folder()), small_corpus(), **options)
    assert caught.value.key == next(iter(options))


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"model": 3}', b"\xff\xfe\x00", b"[]"])
def test_a_broken_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_tokenizer(Work(folder()), path=str(tmp_path))
    assert "tokenizer.json" in str(caught.value.file)
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff", b"hello there", b"\x12\x00"])
def test_a_broken_sentencepiece_model_is_refused(tmp_path, content):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(DataError, match="SentencePiece"):
        read_tokenizer(tmp_path / "a.model")


@pytest.mark.parametrize("content", [b"", b"AA== x\n", b"!!! 1\n", b"AA== 0\n", b"AA==\n"])
def test_a_broken_rank_file_is_refused(tmp_path, content):
    (tmp_path / "a.tiktoken").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_tokenizer(tmp_path / "a.tiktoken")
    assert "a.tiktoken" in str(caught.value)


def test_a_tokenizer_that_is_not_there_or_has_no_end_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match="holds no"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(small_tokenizer().backend.to_str().replace("<|end|>", "<-end->"))
    with pytest.raises(DataError, match="end of a document"):
        read_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no token '<x>'"):
        read_tokenizer(tmp_path, end="<x>")
    assert read_tokenizer(tmp_path, end="<-end->")[1]["end"] == 0


@pytest.mark.parametrize("ending", [".tokens", ".npy"])
def test_a_truncated_or_altered_shard_is_found(ending):
    tokens = copied()
    path = shard(tokens, ending)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(ArtifactError, match="truncated") as caught:
        Tokens.open(tokens.folder)
    assert caught.value.file == path
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="altered"):
        Tokens.open(tokens.folder)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Tokens.open(tokens.folder)


def test_a_shard_truncated_after_opening_is_found():
    tokens = copied()
    for path in (tokens.folder / SHARDS).glob("*.tokens"):
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match="truncated"):
        tokens.read(0)


def test_an_index_that_is_none_is_refused_even_unverified():
    tokens = copied()
    shard(tokens, ".npy").write_bytes(b"no index")
    with pytest.raises(ArtifactError, match="index"):
        Tokens(tokens.folder, tokens.manifest)
    meta = json.loads((small_tokens().folder / META).read_text())
    other = copied()
    meta["shards"][0]["tokens"] += 1
    (other.folder / META).write_text(json.dumps(meta))
    with pytest.raises(ArtifactError, match="add up"):
        Tokens(other.folder, other.manifest)


def test_a_store_of_another_kind_is_refused():
    with pytest.raises(ArtifactError, match="corpus"):
        Tokens.open(small_corpus().folder)


def test_other_tokenizers_and_smaller_models_are_refused():
    tokens = small_tokens()
    tokens.check_tokenizer(small_tokenizer())
    tokens.check_vocabulary(320)
    with pytest.raises(DataError, match="were made with tokenizer"):
        tokens.check_tokenizer(train(small_corpus(), vocabulary=300))
    with pytest.raises(DataError, match="vocabulary of 320, and the model's has 319"):
        tokens.check_vocabulary(319)


def test_reusing_an_altered_store_is_refused():
    tokens = copied()
    path = shard(tokens, ".tokens")
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ArtifactError, match="altered"):
        store(small_corpus(), small_tokenizer(), reuse=str(tokens.folder))


@pytest.mark.parametrize(
    ("options", "key"), [({"held_out": 1.0}, "held_out"), ({"held_out": -0.1}, "held_out"), ({"shard_megabytes": 0}, "shard_megabytes")]
)
def test_fractions_and_sizes_out_of_range_are_refused(options, key):
    with pytest.raises(RecipeError) as caught:
        tokenize(Work(folder()), small_corpus(), small_tokenizer(), **options)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"length": 10_000_000}, DataError, "whole train split"),
        ({"length": 0}, RecipeError, "at least one token"),
        ({"mix": {"name": "fixed", "weights": {"proose": 1}}}, RecipeError, "no source or domain 'proose'"),
        ({"mix": {"name": "fixed", "weights": {"prose": -1, "code": 2}}}, RecipeError, "from 0 up"),
        ({"mix": {"name": "fixed", "weights": {"prose": 0.0}}}, RecipeError, "sum to zero"),
        ({"mix": {"name": "fixed", "weights": {"prose": float("nan")}}}, RecipeError, "from 0 up"),
        ({"mix": {"name": "temperature", "temperature": 0.0}}, RecipeError, "above 0"),
        ({"mix": "fixd"}, RecipeError, "no 'fixd'"),
        ({"pack": {"name": "concat", "mask": True}}, RecipeError, "no such key"),
        ({"only": ["proze"]}, DataError, "no domain 'proze'"),
        ({"split": "test"}, DataError, "no split 'test'"),
    ],
)
def test_loaders_that_cannot_be_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        Loader(small_tokens(), **({"length": 16} | options))


def test_a_share_of_nothing_is_refused():
    tokens = store(small_corpus(), small_tokenizer(), held_out=0.0)
    with pytest.raises(DataError, match="whole held_out split"):
        Loader(tokens, length=16, split="held_out")
    with pytest.raises(DataError, match="no document"):
        next(held_out_batches(tokens, length=16, rows=2))
    with pytest.raises(RecipeError, match="overlap"):
        next(held_out_batches(small_tokens(), length=16, rows=2, overlap=16))


def test_a_torn_corpus_is_refused():
    place = folder()
    with CorpusWriter(place) as writer:
        for document in documents(20):
            writer.add(document)
    corpus = write_corpus(folder(), documents(20))
    path = corpus.shards[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="Parquet"):
        tokenize(Work(folder()), corpus, small_tokenizer(), processes=1)


def test_a_full_disk_says_so_and_leaves_no_half_shard(monkeypatch):
    from bessemer.core import files

    out, real = folder(), os.fsync
    count = []

    def full(handle):
        count.append(handle)
        if len(count) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BessemerError, match="disk is full"):
        tokenize(Work(out), small_corpus(), small_tokenizer(), processes=1, held_out=0.2)
    monkeypatch.undo()
    left = sorted(path.suffix for path in (out / SHARDS).iterdir())
    assert left == [".npy", ".tokens"]
    assert not (out / META).exists()
    done = store(small_corpus(), small_tokenizer(), out)
    assert (done.lengths == small_tokens().lengths).all()
    assert np.array_equal(done.read(7), small_tokens().read(7))
