import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.work import Work
from bessemer.data.corpus import write_corpus
from bessemer.data.document import Document
from bessemer.data.held_out import held_out_batches
from bessemer.data.tokens import SHARDS
from bessemer.run.stages.tokenize import tokenize
from tests.folders import folder
from tests.unit.data.token_stores import documents, small_corpus, small_tokenizer, small_tokens, store, texts


def contents(tokens):
    """Every file of a store and what is in it."""
    names = list(tokens.manifest["files"])
    return {name: (tokens.folder / name).read_bytes() for name in names}


def test_every_document_is_there_with_its_end_its_bytes_and_its_domain():
    tokens, tokenizer = small_tokens(), small_tokenizer()
    given_ = {(d.text, d.source, d.domain) for d in documents()}
    found = set()
    for number in range(len(tokens.lengths)):
        ids = tokens.read(number).tolist()
        assert ids[-1] == tokens.end
        text = tokenizer.decode(ids[:-1])
        assert tokens.bytes[number] == len(text.encode())
        found.add((text, tokens.sources[tokens.source[number]], tokens.domains[tokens.domain[number]]))
    assert found == given_
    assert tokens.dtype == np.uint16
    assert tokens.total == tokens.lengths.sum()


def test_splits_are_kept_by_text_and_near_the_fraction():
    tokens, tokenizer = small_tokens(), small_tokenizer()
    held = {tokenizer.decode(tokens.read(d)[:-1]) for d in tokens.documents("held_out")}
    assert 0.1 < len(held) / 200 < 0.3
    more = store(write_corpus(folder(), [*documents(60, seed=8), *documents()]), tokenizer)
    again = {tokenizer.decode(more.read(d)[:-1]) for d in more.documents("held_out")}
    assert held <= again
    trained = {tokenizer.decode(more.read(d)[:-1]) for d in more.documents("train")}
    assert not held & trained
    narrower = store(small_corpus(), tokenizer, held_out=0.05)
    assert {tokenizer.decode(narrower.read(d)[:-1]) for d in narrower.documents("held_out")} < held
    assert sum(c["documents"] for split in ("train", "held_out") for c in tokens.counts(split).values()) == 200


def test_every_domain_of_several_documents_is_measured():
    several = [Document(text, "s", domain, str(i)) for i, (text, domain) in enumerate(zip(texts(6), ["few"] * 5 + ["one"], strict=True))]
    corpus = write_corpus(folder(), several)
    tokens = store(corpus, small_tokenizer(), held_out=1e-9)
    assert {name: count["documents"] for name, count in tokens.counts("held_out").items()} == {"few": 1, "one": 0}
    more = store(corpus, small_tokenizer(), held_out=0.5)
    assert set(tokens.documents("held_out")) <= set(more.documents("held_out"))
    assert not store(corpus, small_tokenizer(), held_out=0.0).held_out.any()


def test_processes_make_the_same_store():
    assert contents(store(small_corpus(), small_tokenizer(), processes=2)) == contents(small_tokens())


def test_adding_sources_to_a_store_equals_making_it_at_once():
    more = [*documents(), *(d.__class__(d.text, "new", "added", d.id) for d in documents(50, seed=5))]
    corpus = write_corpus(folder(), more)
    at_once = store(corpus, small_tokenizer())
    added = store(corpus, small_tokenizer(), reuse=str(small_tokens().folder))
    assert contents(added) == contents(at_once)
    assert added.info["shards_taken_over"] == 3
    assert added.info["shards"] == 4


def test_an_interrupted_run_goes_on_and_leaves_no_rubbish(monkeypatch):
    from bessemer.data import store as module

    out, calls = folder(), []
    real = module.files.write

    def dies(path, content):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(module.files, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        tokenize(Work(out), small_corpus(), small_tokenizer(), processes=1, held_out=0.2)
    monkeypatch.undo()
    (out / SHARDS / ".torn.tokens.x").write_bytes(b"half")
    done = store(small_corpus(), small_tokenizer(), out)
    assert contents(done) == contents(small_tokens())
    assert done.info["shards_taken_over"] == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_take_reads_any_stretches_across_shards(data):
    tokens = small_tokens()
    flat = np.concatenate([tokens.read(d) for d in range(len(tokens.lengths))])
    chosen = data.draw(st.lists(st.integers(0, 199), max_size=12))
    start = np.array([data.draw(st.integers(0, int(tokens.lengths[d]) - 1)) for d in chosen], dtype=np.int64)
    document = np.array(chosen, dtype=np.int64)
    size = tokens.lengths[document] - start
    begin = tokens.starts[document] + start
    expected = [i for b, n in zip(begin, size, strict=True) for i in flat[b : b + n]]
    assert tokens.take(begin, size).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(length=st.integers(4, 80), rows=st.integers(1, 7), share=st.floats(0, 0.99), ranks=st.integers(1, 3))
def test_every_held_out_byte_is_scored_once(length, rows, share, ranks):
    tokens = small_tokens()
    batches = [
        batch
        for rank in range(ranks)
        for batch in held_out_batches(tokens, length=length, rows=rows, overlap=int(share * length), rank=rank, ranks=ranks)
    ]
    scored = sorted(int(i) for batch in batches for i in batch.targets[batch.weights["next_token"] == 1])
    expected = sorted(int(i) for d in tokens.documents("held_out") for i in tokens.read(d)[:-1])
    assert scored == expected
    assert sum(float(batch.weights["bytes"].sum()) for batch in batches) == tokens.bytes[tokens.held_out].sum()


def test_windows_give_context_and_domains_add_up():
    tokens = small_tokens()
    for batch in held_out_batches(tokens, length=16, rows=4, overlap=6):
        late = batch.weights["next_token"] == 1
        first = (batch.tokens == tokens.begin) & (batch.positions == 0)
        continued = (batch.positions == 0) & ~first & (batch.segments > 0 if batch.segments is not None else True)
        assert not (late & continued).any()
    sums = [sum(float(b.weights["bytes"].sum()) for b in held_out_batches(tokens, length=16, rows=4, domain=d)) for d in tokens.domains]
    assert sum(sums) == tokens.bytes[tokens.held_out].sum()
    some = sum(float(b.weights["next_token"].sum()) for b in held_out_batches(tokens, length=16, rows=4, limit=50))
    assert 0 < some < 200


def test_bytes_are_the_texts_own_when_the_tokenizer_changes_it(tmp_path):
    import tokenizers

    from bessemer.data.tokenizer import Tokenizer, write_tokenizer

    backend = tokenizers.Tokenizer.from_str(small_tokenizer().backend.to_str())
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Replace("the", ""), tokenizers.normalizers.NFKC()])
    write_tokenizer(tmp_path, backend, {"end": 0, "begin": 0, "pad": 1, "fast": False})
    tokens = store(small_corpus(), Tokenizer.load(tmp_path))
    found = sum(float(b.weights["bytes"].sum()) for b in held_out_batches(tokens, length=20, rows=3))
    assert found == tokens.bytes[tokens.held_out].sum() == small_tokens().bytes[small_tokens().held_out].sum()


def test_ids_above_65535_are_stored_in_four_bytes(tmp_path):
    import json

    from bessemer.data.loader import Loader
    from bessemer.data.tokenizer import Tokenizer

    definition = json.loads(small_tokenizer().backend.to_str())
    vocabulary = {token: i if i < 2 else i + 70_000 for token, i in definition["model"]["vocab"].items()}
    taken = set(vocabulary.values())
    definition["model"]["vocab"] = vocabulary | {f"unused {i}": i for i in range(max(taken)) if i not in taken}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.fast
    tokens = store(small_corpus(), tokenizer)
    assert tokens.dtype == np.uint32
    assert tokens.vocabulary == max(taken) + 1
    for number in range(len(tokens.lengths)):
        narrow, wide = small_tokens().read(number), tokens.read(number)
        assert (wide == np.where(narrow < 2, narrow, narrow + 70_000)).all()
    one, other = Loader(tokens, length=48).batch(0, 6), Loader(small_tokens(), length=48).batch(0, 6)
    assert int(one.targets.max()) > 65_535
    assert (one.targets.where(one.targets < 2, one.targets - 70_000) == other.targets).all()
