"""The corpus comes back as it was written, in bounded batches, and is the same byte for byte whoever writes it."""

import pyarrow
import pytest

from bessemer.core.files import checksum
from bessemer.data.corpus import Corpus, ShardWriter, as_documents, write_corpus
from bessemer.data.document import Document


def some(count):
    return [
        Document(f"text {i} " * (i % 50 + 1), "ab"[i % 2], ["prose", "code", "talk"][i % 3], str(i), {"n": i} if i % 5 == 0 else {})
        for i in range(count)
    ]


def test_round_trip(tmp_path):
    documents = some(500)
    corpus = write_corpus(tmp_path / "c", documents, shard_bytes=20_000)
    assert len(corpus.shards) > 3
    assert list(corpus.documents()) == documents
    assert list(Corpus.open(tmp_path / "c").documents("code")) == [d for d in documents if d.domain == "code"]


def test_counts(tmp_path):
    documents = some(300)
    corpus = write_corpus(tmp_path / "c", documents)
    assert corpus.count == 300
    assert corpus.bytes == sum(len(d.text.encode()) for d in documents)
    assert corpus.domains == ["code", "prose", "talk"]
    assert corpus.sources == ["a", "b"]
    assert corpus.counts["a"]["code"]["documents"] == sum(d.source == "a" and d.domain == "code" for d in documents)
    assert corpus.info["by_domain"]["talk"]["documents"] == 100


def test_batches_are_bounded(tmp_path):
    corpus = write_corpus(tmp_path / "c", some(1000))
    batches = list(corpus.batches(("text", "domain"), rows=64))
    assert all(isinstance(b, pyarrow.RecordBatch) and b.num_rows <= 64 and b.schema.names == ["text", "domain"] for b in batches)
    assert sum(b.num_rows for b in batches) == 1000


def test_lone_surrogates_become_replacement_characters(tmp_path):
    corpus = write_corpus(tmp_path / "c", [Document("a\ud800b")])
    assert next(corpus.documents()).text == "a�b"


def test_error_leaves_no_half_shard(tmp_path):
    def interrupted():
        yield from some(100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, interrupted(), shard_bytes=50_000)
    assert not list((tmp_path / "shards").glob(".*"))
    assert not (tmp_path / "counts.json").exists()


def test_batches_and_documents_make_the_same_rows(tmp_path):
    documents = some(200)
    first = write_corpus(tmp_path / "a", documents)
    with ShardWriter(tmp_path / "b") as writer:
        for batch in first.batches():
            writer.add_batch(batch)
    second = ShardWriter(tmp_path / "c")
    for document in (d for b in first.batches() for d in as_documents(b)):
        second.add(document)
    second.close()
    assert writer.tally == second.tally
    assert checksum(tmp_path / "c/shards/00000-00000.parquet") == checksum(first.shards[0])
