"""Vectorised MinHash equals a plain one; planted copies are found, one of each cluster stays, and which one is fixed."""

import random
import re
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.registry import names
from bessemer.core.work import Work
from bessemer.data.corpus import SHARDS, write_corpus
from bessemer.data.document import Document
from bessemer.data.select import _words
from bessemer.data.select.exact import exact
from bessemer.data.select.minhash import _permutations, best_bands, minhash, odds, signatures
from bessemer.run.stages.deduplicate import deduplicate

MASK = 2**64 - 1
EAST = [bytes([lead]) for lead in range(0xE3, 0xEE)]


def plain_words(text):
    """Words as bytes, the slow way."""
    words, current = [], b""
    for character in text:
        raw = character.lower().encode() if character.isascii() else character.encode()
        if character.isascii() and not character.isalnum():
            words, current = [*words, current], b""
        elif raw[:1] in EAST:
            words, current = [*words, current], raw
        else:
            current += raw
    return [w for w in [*words, current] if w]


def plain_signature(text, ngram, permutations):
    words = [sum(int(_words.VALUES[b]) * pow(_words.BASE, i, 2**64) for i, b in enumerate(word)) & MASK for word in plain_words(text)]
    if not words:
        return None
    words += [0] * (ngram - len(words))
    grams = []
    for start in range(len(words) - ngram + 1):
        total = 0
        for word in words[start : start + ngram]:
            total = (total * _words.BASE + word) & MASK
        total = ((total ^ (total >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        total = ((total ^ (total >> 27)) * 0x94D049BB133111EB) & MASK
        grams.append((total ^ (total >> 31)) >> 32)
    factors, addends = _permutations(permutations, 0)
    return [min((int(a) * g + int(b)) & 0xFFFFFFFF for g in grams) for a, b in zip(factors, addends, strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("abC1 é.,\n日本ф😀 "), max_size=60), min_size=1, max_size=12), st.integers(1, 6))
def test_signatures_equal_a_plain_minhash(texts, ngram):
    found, filled = signatures(pyarrow.array(texts, "string"), ngram, 5)
    expected = {i: s for i, text in enumerate(texts) if (s := plain_signature(text, ngram, 5))}
    assert filled.tolist() == list(expected)
    assert found.T.tolist() == list(expected.values())


def test_chunks_make_no_difference(monkeypatch):
    draw = random.Random(0)
    texts = pyarrow.array([" ".join(draw.choices(["one", "two", "naïve", "日本", "x" * 300], k=draw.randint(0, 90))) for _ in range(200)], "string")
    whole = minhash(texts)
    monkeypatch.setattr(_words, "CHUNK", 64)
    monkeypatch.setattr("bessemer.data.select.minhash.CHUNK", 16)
    assert (minhash(texts) == whole).all()
    assert (numpy.concatenate([minhash(texts[i : i + 7]) for i in range(0, 200, 7)], axis=1) == whole).all()
    assert (minhash(texts.cast("large_string")) == whole).all()


def test_share_of_equal_minima_is_the_jaccard_similarity():
    draw = random.Random(1)
    first = draw.choices([f"w{i}" for i in range(9999)], k=400)
    second = first[:300] + draw.choices([f"v{i}" for i in range(9999)], k=100)
    found, _ = signatures(pyarrow.array([" ".join(first), " ".join(second)]), 5, 2000)
    true = 296 / (396 * 2 - 296)
    assert abs((found[0:, 0] == found[:, 1]).mean() - true) < 4 * (true * (1 - true) / 2000) ** 0.5


def test_bands_follow_a_threshold():
    for threshold in (0.5, 0.7, 0.9):
        bands = best_bands(112, threshold)
        assert abs(odds(threshold, bands, 112 // bands) - 0.5) < 0.25
    assert minhash(pyarrow.array(["a b c"]), threshold=0.9).shape[0] < minhash(pyarrow.array(["a b c"]), threshold=0.5).shape[0]


@pytest.mark.parametrize(
    ("ignore", "groups"),
    [("nothing", [0, 1, 2, 3, 4, None]), ("blanks", [0, 0, 2, 3, 4, None]), ("all but words", [0, 0, 0, 3, 0, None])],
)
def test_exact(ignore, groups):
    texts = ["a b  c", " a\tb c\n", "A, b - c", "a bc", "a+b c", ""]
    keys = exact(pyarrow.array(texts), ignore=ignore)[0].tolist()
    assert [None if key == 0 else keys.index(key) for key in keys] == groups


WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrstvxz"]


def planted(count=300, seed=0):
    """Documents with copies: exact ones up to blanks, near ones with one word of a hundred replaced."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = draw.choices(WORDS, k=120)
        made.append(Document(" ".join(words), "ab"[number % 2], "prose", f"{number}"))
        if number % 5 == 0:
            made.append(Document("  ".join(words) + "\n", "ab"[number % 3 == 0], "prose", f"{number}-exact"))
        if number % 4 == 0:
            words[draw.randrange(120)] = "changed"
            made.append(Document(" ".join([*words, "tail"]), "ab"[number % 2], "prose", f"{number}-near"))
    draw.shuffle(made)
    return made


def run(folder, corpus, **options):
    work = Work(Path(folder))
    work.out.mkdir(parents=True)
    deduplicate(work, corpus, **options)
    kept = [i for shard in sorted((work.out / SHARDS).iterdir()) for i in pyarrow.parquet.read_table(shard)["id"].to_pylist()]
    return work, kept, pyarrow.parquet.read_table(work.out / "pairs.parquet").to_pylist()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), planted(), shard_bytes=40_000)


def family(name):
    return re.split("-", name)[0]


def test_one_of_each_cluster_stays(corpus, tmp_path):
    assert len(corpus.shards) > 4
    work, kept, pairs = run(tmp_path / "o", corpus, processes=1)
    ids = [d.id for d in corpus.documents()]
    assert [family(i) for i in kept] == list(dict.fromkeys(family(i) for i in ids))  # every family once
    assert kept == [i for n, i in enumerate(ids) if family(i) not in map(family, ids[:n])]  # its first
    assert {(p["removed_id"]) for p in pairs} == set(ids) - set(kept)
    assert all(family(p["removed_id"]) == family(p["kept_id"]) and p["kept_id"] in kept for p in pairs)
    assert work.info["documents"] == 300
    assert work.info["documents_before"] == len(ids)
    assert work.info["removed"]["exact"] == 60
    assert sum(work.info["removed"].values()) == len(pairs) == sum(work.info["removed_by_sources"].values())
    assert work.info["clusters"] == len({p["kept_id"] for p in pairs})
    assert not list(work.out.glob(".*"))


def test_local_scope_links_only_within_sources(corpus, tmp_path):
    work, kept, pairs = run(tmp_path / "o", corpus, scope="local", processes=1)
    assert pairs
    assert all(p["removed_source"] == p["kept_source"] for p in pairs)
    assert set(work.info["removed_by_sources"]) == {"a > a", "b > b"}
    sources = {d.id: d.source for d in corpus.documents()}
    assert len({(family(i), sources[i]) for i in kept}) == len(kept) > 300


def test_the_longest_is_kept(corpus, tmp_path):
    _, kept, _ = run(tmp_path / "o", corpus, keep="longest", processes=1)
    sizes = {d.id: (len(d.text), d.id) for d in corpus.documents()}
    assert all(sizes[i][0] == max(size for size, name in sizes.values() if family(name) == family(i)) for i in kept)


def test_the_shards_make_no_difference(corpus, tmp_path):
    other = write_corpus(tmp_path / "c", corpus.documents(), shard_bytes=1 << 30)
    assert run(tmp_path / "a", corpus, processes=1)[1:] == run(tmp_path / "b", other, processes=1)[1:]


def test_every_method_gives_keys_by_text_alone():
    texts = pyarrow.array(["one two three four five six", "", "another", "one two three four five six"])
    for name in names("data/select"):
        keys = __import__(f"bessemer.data.select.{name}", fromlist=[name]).__dict__[name](texts)
        assert keys.dtype == numpy.uint64
        assert (keys[:, 0] == keys[:, 3]).all()
        assert (keys[:, 1] == 0).all()
        assert (keys[:, 0] != keys[:, 2]).all()
