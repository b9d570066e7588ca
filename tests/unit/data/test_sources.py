"""Each source gives every document once, in a fixed order, and its parts in order are the whole."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from bessemer.core.registry import find, names
from bessemer.data.document import Document, Skipped
from bessemer.data.sources import _python
from bessemer.data.sources.arithmetic import arithmetic, value, verify
from bessemer.data.sources.jsonl import jsonl
from bessemer.data.sources.parquet import parquet
from bessemer.data.sources.stdlib import stdlib
from bessemer.data.sources.text import text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmarked\r\nlines")
    (tmp_path / "b.md").write_text("one<sep>two<sep><sep>three é")
    (tmp_path / "inner/c.txt").write_text("sixteen", encoding="utf-16")
    with gzip.open(tmp_path / "d.txt.gz", "wt") as file:
        file.write("packed")
    rows = [{"text": f"document {i}", "about": {"id": i, "kind": "ab"[i % 2]}} for i in range(20)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "x.jsonl").write_bytes(lines)
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(lines[:400]) + gzip.compress(lines[400:]))
    packer = zstandard.ZstdCompressor()
    (tmp_path / "z.jsonl.zst").write_bytes(packer.compress(lines[:400]) + packer.compress(lines[400:]))
    pyarrow.parquet.write_table(pyarrow.table({"body": [f"row {i}" for i in range(3000)], "n": range(3000)}), tmp_path / "p.parquet")
    return tmp_path


def whole_and_parts(source, of=3, **options):
    whole = list(source(**options))
    assert [d for i in range(of) for d in source((i, of), **options)] == whole
    assert list(source(**options)) == whole
    return whole


def test_text(folder):
    found = whole_and_parts(text, files=[str(folder)])
    assert [(d.id, d.text) for d in found] == [
        ("a.txt", "marked\nlines"), ("b.md", "one<sep>two<sep><sep>three é"), ("d.txt.gz", "packed"), ("inner/c.txt", "sixteen"),
    ]  # fmt: skip


def test_separator(folder):
    found = list(text(files=[str(folder / "*.md")], separator="<sep>", label="mine", domain="talk"))
    assert [(d.id, d.text, d.source, d.domain) for d in found] == [(f"b.md#{i}", t, "mine", "talk") for i, t in enumerate(("one", "two", "three é"))]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("separator", [None, "<|end|>"])
def test_long_texts_are_cut_at_blank_lines(tmp_path, monkeypatch, chunk, separator):
    monkeypatch.setattr("bessemer.data.sources.text.CHUNK", chunk)
    body = "".join(f"Paragraph {i} is here\nin two lines.\n\n" for i in range(40)) + "x" * 250 + ("" if separator is None else "<|end|>last")
    (tmp_path / "book.txt").write_text(body)
    found = list(text(files=[str(tmp_path / "book.txt")], longest=100, separator=separator))
    assert "".join(d.text for d in found) == body.replace("<|end|>", "")
    assert all(0 < len(d.text) <= 100 for d in found)
    assert all(d.text.endswith("\n\n") for d in found[:19])
    assert len({d.id for d in found}) == len(found)
    assert [d.text for d in found][-1] == ("x" * 50 if separator is None else "last")


def test_separator_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("bessemer.data.sources.text.CHUNK", 7)
    pieces = [f"piece {i} ÄÖÜ" for i in range(40)]
    (tmp_path / "t.txt").write_text("<|end|>".join(pieces))
    assert [d.text for d in text(files=[str(tmp_path / "t.txt")], separator="<|end|>")] == pieces


@pytest.mark.parametrize("name", ["x.jsonl", "y.jsonl.gz", "z.jsonl.zst"])
def test_jsonl(folder, name):
    found = list(jsonl(files=[str(folder / name)], id="about.id", metadata=["about.kind"], domain_key="about.kind"))
    assert [(d.text, d.id, d.domain, d.metadata) for d in found] == [
        (f"document {i}", str(i), "ab"[i % 2], {"about.kind": "ab"[i % 2]}) for i in range(20)
    ]


def test_jsonl_passes_over_as_many_broken_lines_as_allowed(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\nnot json\n\n{"other": 1}\n{"text": "b"}\n')
    found = list(jsonl(files=[str(tmp_path / "x.jsonl")], broken=2))
    assert [d.text for d in found if isinstance(d, Document)] == ["a", "b"]
    assert [(d.reason, d.where) for d in found if isinstance(d, Skipped)] == [
        ("the line is no JSON", "x.jsonl:2"), ("the line has no key 'text'", "x.jsonl:4"),
    ]  # fmt: skip


def test_parquet(folder):
    found = list(parquet(files=[str(folder)], text="body", metadata=["n"]))
    assert [(d.text, d.id, d.metadata) for d in found] == [(f"row {i}", f"p.parquet:{i}", {"n": i}) for i in range(3000)]


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face(tmp_path, streaming, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    hugging_face = find("data/sources", "hugging_face")
    datasets.Dataset.from_dict({"body": [f"row {i}" for i in range(10)]}).save_to_disk(str(tmp_path / "saved"))
    found = whole_and_parts(hugging_face, path=str(tmp_path / "saved"), text="body", streaming=streaming, label="hf", limit=9)
    assert [(d.text, d.id, d.source) for d in found] == [(f"row {i}", str(i), "hf") for i in range(9)]


def test_hugging_face_builder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    found = list(find("data/sources", "hugging_face")(path="json", files=str(tmp_path / "x.jsonl"), streaming=True))
    assert [getattr(d, "text", None) for d in found] == ["a", None]


def test_arithmetic_is_true_and_told_from_false():
    found = whole_and_parts(arithmetic, documents=50, terms=4, operations=["+", "-", "*"], digits=4)
    assert len({d.text for d in found}) == 50
    for document in found:
        assert verify(document.text)
        for line in document.text.splitlines():
            left, right = line.split(" = ")
            assert int(right) == eval(left) == value(left)
            assert not verify(f"{left} = {int(right) + 1}")
    assert not verify("")
    assert not verify("two and two")
    assert next(iter(arithmetic(documents=1, seed=1))) != next(iter(arithmetic(documents=1, seed=2)))


class TestStdlib:
    def test_two_domains_and_shared_ids(self):
        found = [d for d in stdlib(include=["stdlib"], megabytes=0.5) if isinstance(d, Document)]
        code, prose = ({d.id: d for d in found if d.domain == domain} for domain in ("code", "prose"))
        assert code.keys() & prose.keys()
        assert all(name.startswith("stdlib/") for name in code)
        for size in (sum(len(d.text.encode()) for d in docs.values()) for docs in (code, prose)):
            assert 250_000 < size <= 500_000

    def test_sorted_and_independent_of_where_it_is_installed(self, tmp_path, monkeypatch):
        def install(root):
            for name in ("alpha/core.py", "alpha/tests/test_core.py", "beta.py", "alpha-1.0.dist-info/METADATA", "alpha/table.py"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                body = f'"""{"What this module is for, at some length. " * 9}"""\n\nNAME = "{name}"\n'
                (root / name).write_text("Name: alpha\n\n" + "A long description. " * 20 if "METADATA" in name else body)
            (root / "alpha/table.py").write_text("TABLE = [" + "1234, 5678, " * 400 + "]\n")
            (root / "std").mkdir()
            monkeypatch.setattr(
                _python.sysconfig,
                "get_paths",
                lambda: {"stdlib": str(root / "std"), "platstdlib": str(root / "std"), "purelib": str(root), "platlib": str(root)},
            )
            return list(stdlib())

        first, second = install(tmp_path / "here"), install(tmp_path / "there/deeper")
        assert first == second
        assert [(getattr(d, "id", None), getattr(d, "domain", None)) for d in first] == [
            ("alpha.dist-info/METADATA", "prose"), ("alpha/core.py", "code"), ("alpha/core.py", "prose"), (None, None), ("beta.py", "code"), ("beta.py", "prose"),
        ]  # fmt: skip

    def test_docstrings_are_found_by_place(self):
        code = '# head\n"""Module docstring that is long enough to be kept."""\nx = """no docstring, however long it may be, of course"""\n'
        code += 'class A:\n    r"""Class docstring that is long enough to be kept."""\n    def f(\n        self,\n    ) -> int:  # why\n'
        code += "        '''Function docstring,\n\n        long enough to be kept.'''\n"
        assert _python.docstrings(code).split("\n\n") == [
            "Module docstring that is long enough to be kept.", "Class docstring that is long enough to be kept.", "Function docstring,", "long enough to be kept.",
        ]  # fmt: skip

    def test_parts_together_are_the_whole(self):
        whole = {(d.domain, d.id) for d in stdlib(include=["stdlib"], domains=["prose"]) if isinstance(d, Document)}
        parts = [{(d.domain, d.id) for d in stdlib((i, 3), include=["stdlib"], domains=["prose"]) if isinstance(d, Document)} for i in range(3)]
        assert set.union(*parts) == whole
        assert sum(map(len, parts)) == len(whole)


def test_every_source_is_found_by_name():
    assert {"stdlib", "text", "jsonl", "parquet", "hugging_face", "arithmetic"} <= set(names("data/sources"))
