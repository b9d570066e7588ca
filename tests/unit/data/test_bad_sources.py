"""What a source is given and can't use: a clear error that names the file or the key, never a traceback of ours."""

import bz2
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from bessemer.core.errors import BessemerError, DataError
from bessemer.core.registry import choose
from bessemer.core.work import Work
from bessemer.run.stages.collect import collect

LINES = "\n".join(json.dumps({"text": f"document {i} " * 20, "n": i}) for i in range(2000)).encode()


@pytest.fixture
def folder(tmp_path):
    def put(name, raw):
        (tmp_path / name).write_bytes(raw)

    put("binary.txt", b"\x7fELF\x00\x00\x01" * 100)
    put("latin.txt", "caf\xe9 au lait".encode("latin-1"))
    put("torn.txt", "ends in é".encode()[:-1])
    put("empty.txt", b"")
    put("blank.txt", b" \n\n ")
    put("short.txt.gz", gzip.compress(LINES)[:-2000])
    put("short.txt.zst", zstandard.compress(LINES)[:-200])
    put("short.txt.bz2", bz2.compress(LINES)[:-200])
    put("false.txt.gz", b"this is no gzip")
    put("false.txt.zst", b"this is no zstandard")
    put("empty.txt.gz", b"")
    put("cut.jsonl", LINES[:-30])
    put("list.jsonl", b'{"text": "a"}\n[1, 2]\n')
    put("other.jsonl", b'{"body": "a", "title": "b"}\n')
    put("number.jsonl", b'{"text": 7}\n')
    put("latin.jsonl", b'{"text": "caf\xe9"}\n')
    put("short.jsonl.gz", gzip.compress(LINES)[:-2000])
    put("short.jsonl.zst", zstandard.compress(LINES)[:-200])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "number": [1, 2]}), tmp_path / "good.parquet")
    put("false.parquet", b"this is no parquet")
    put("short.parquet", (tmp_path / "good.parquet").read_bytes()[:-20])
    raw = bytearray((tmp_path / "good.parquet").read_bytes())
    raw[4:60] = b"\xff" * 56
    put("torn.parquet", bytes(raw))
    (tmp_path / "nothing").mkdir()
    return tmp_path


CASES = [
    ("text", "missing.txt", {}, "missing.txt: files: there is no such file or folder"),
    ("text", "emty.txt", {}, "did you mean 'empty.txt'"),
    ("text", "nothing", {}, "nothing: files: nothing fits"),
    ("text", "*.doc", {}, "nothing fits"),
    ("text", None, {}, "files: names no file"),
    ("text", "binary.txt", {"bad": "stop"}, "binary.txt: is binary"),
    ("text", "latin.txt", {"bad": "stop"}, "latin.txt: is mis-encoded: no utf-8 at about byte 3"),
    ("text", "torn.txt", {"bad": "stop"}, "torn.txt: is mis-encoded: no utf-8 at its end"),
    ("text", "empty.txt", {"bad": "stop"}, "empty.txt: is empty"),
    ("text", "blank.txt", {"bad": "stop"}, "blank.txt: is empty"),
    (
        "text",
        "latin.txt",
        {},
        'the sources hold no document (1 mis-encoded: latin.txt)\n  mend: say how the files are written, for example encoding = "latin-1"',
    ),
    ("text", "binary.txt", {}, "the sources hold no document (1 binary: binary.txt)"),
    ("text", "empty.txt", {}, "the sources hold no document (1 empty: empty.txt)"),
    ("text", "latin.txt", {"encoding": "latin1000"}, "encoding: there is no encoding 'latin1000'"),
    ("text", "latin.txt", {"separator": ""}, "separator: an empty separator"),
    ("text", "short.txt.gz", {}, "short.txt.gz: its compressed stream is broken or ends early"),
    ("text", "short.txt.zst", {}, "short.txt.zst: its compressed stream is broken or ends early"),
    ("text", "short.txt.bz2", {}, "short.txt.bz2: its compressed stream is broken or ends early"),
    ("text", "false.txt.gz", {}, "false.txt.gz: its compressed stream is broken"),
    ("text", "false.txt.zst", {}, "false.txt.zst: its compressed stream is broken"),
    ("text", "empty.txt.gz", {}, "empty.txt.gz: is empty, and so no compressed file"),
    ("jsonl", "missing.jsonl", {}, "there is no such file"),
    ("jsonl", "cut.jsonl", {}, "cut.jsonl:2000: the line is no JSON"),
    ("jsonl", "list.jsonl", {}, "list.jsonl:2: the line is no JSON object"),
    ("jsonl", "other.jsonl", {}, "other.jsonl:1: the line has no key 'text' (its keys are body, title)"),
    ("jsonl", "number.jsonl", {}, "number.jsonl:1: the value of 'text' is no string (it is int)"),
    ("jsonl", "latin.jsonl", {}, "latin.jsonl:1: the line is not UTF-8 (byte 13)"),
    ("jsonl", "other.jsonl", {"broken": 3}, "the sources hold no document (1 the line has no key 'text': other.jsonl"),
    ("jsonl", "short.jsonl.gz", {}, "short.jsonl.gz: its compressed stream is broken or ends early"),
    ("jsonl", "short.jsonl.zst", {}, "short.jsonl.zst: its compressed stream is broken or ends early"),
    ("parquet", "good.parquet", {"text": "txt"}, "good.parquet: txt: there is no column 'txt'\n  mend: did you mean 'text'?"),
    ("parquet", "good.parquet", {"text": "number"}, "good.parquet: number: the text column holds int64"),
    ("parquet", "good.parquet", {"metadata": ["who"]}, "good.parquet: who: there is no column 'who'"),
    ("parquet", "false.parquet", {}, "false.parquet: can't be read as Parquet"),
    ("parquet", "short.parquet", {}, "short.parquet: can't be read as Parquet"),
    ("parquet", "torn.parquet", {}, "torn.parquet: can't be read as Parquet"),
]


@pytest.mark.parametrize(("source", "name", "options", "says"), CASES, ids=[f"{c[0]}-{c[1]}-{n}" for n, c in enumerate(CASES)])
def test_bad_files(source, name, options, says, folder, tmp_path):
    table = {"name": source, "files": [] if name is None else [str(folder / name)], **options}
    (tmp_path / "out").mkdir()
    with pytest.raises(BessemerError) as caught:
        collect(Work(tmp_path / "out"), sources=[table], processes=1)
    assert says in str(caught.value)
    assert not (tmp_path / "out" / "counts.json").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"name": "stdlib", "include": ["nunpy"]}, "include: there is no installed package 'nunpy'\n  mend: did you mean 'numpy'"),
        ({"name": "stdlib", "megabytes": 0.0}, "megabytes: 0.0 MB of code hold nothing"),
        ({"name": "arithmetic", "documents": 0}, "arithmetic: documents, lines and operations must be at least 1"),
        ({"name": "hugging_face", "path": "/no/such/folder"}, "/no/such/folder: path: can't be loaded"),
    ],
)
def test_bad_options(table, says, tmp_path):
    with pytest.raises(DataError) as caught:
        collect(Work(tmp_path), sources=[table], parts=1, processes=1)
    assert says in str(caught.value)


def test_a_dataset_without_the_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"body": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="there is no column 'text'"):
        list(choose("data/sources", {"name": "hugging_face", "path": str(tmp_path / "saved")})())


@pytest.mark.parametrize("options", [{"parts": 0}, {"shard_megabytes": 0}, {"sources": []}, {"processes": 0}])
def test_bad_stage_options(options, tmp_path):
    with pytest.raises(BessemerError):
        collect(Work(tmp_path), **options)
