"""The data stages: counts that add up, the same bytes however they are run, and nothing lost or doubled by a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bessemer.core.errors import BessemerError, DataError
from bessemer.core.files import checksum
from bessemer.core.work import Work
from bessemer.data import workers
from bessemer.data.corpus import Corpus, write_corpus
from bessemer.data.document import Document
from bessemer.run.stages.clean import clean
from bessemer.run.stages.collect import collect
from bessemer.run.stages.deduplicate import deduplicate

RULES = ["unicode", {"name": "gopher_quality", "fewest_words": 5}, {"name": "language", "domains": ["talk"]}]


def stage(function, out, *given, **options):
    work = Work(Path(out))
    work.out.mkdir(parents=True, exist_ok=True)
    function(work, *given, **options)
    return work


def prints(folder):
    return {p.relative_to(folder).as_posix(): checksum(p) for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def texts(count=400):
    for i in range(count):
        text = f"The {i} of the words that have to be here with number {i * i}. " * (1 + i % 9)
        domain = ["prose", "talk", "code"][i % 3]
        yield Document("tiny" if i % 10 == 0 else f"cafÃ© {text}" if i % 7 == 0 else text, "made", domain, str(i))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), texts(), shard_bytes=12_000)


@pytest.fixture
def lines(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": f"document {i} of file {number}"}) for i in range(50)))
    return [{"name": "jsonl", "files": [str(tmp_path / "*.jsonl")]}, {"name": "arithmetic", "documents": 40}]


def test_collect(lines, tmp_path):
    work = stage(collect, tmp_path / "o", sources=lines, processes=1)
    assert work.info["by_source"]["jsonl"]["documents"] == 300
    assert work.info["by_source"]["arithmetic"]["documents"] == 40
    found = list(Corpus(work.out, {}).documents())
    assert [d.text for d in found[:300]] == [f"document {i} of file {n}" for n in range(6) for i in range(50)]
    assert not list(work.out.glob(".*"))


def test_collect_counts_what_it_passes_over(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\x00\x01\x02")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9 and more")
    (tmp_path / "d.txt").write_bytes(b"")
    work = stage(collect, tmp_path / "o", sources=[{"name": "text", "files": [str(tmp_path)]}], processes=1)
    assert work.info["documents"] == 1
    assert work.info["skipped"] == {"binary": 1, "empty": 1, "mis-encoded": 1}
    assert work.info["skipped_where"]["binary"] == ["b.txt"]


def test_smoke_takes_little(lines, tmp_path):
    work = Work(tmp_path, smoke=True)
    collect(work, sources=lines[:1], processes=1)
    assert work.info["documents"] == 100


def test_every_removal_is_counted(corpus, tmp_path):
    work = stage(clean, tmp_path / "o", corpus, rules=RULES, processes=1)
    removed = work.info["removed"]
    assert removed["gopher_quality"]["too few words"]["prose"]["documents"] == 14
    gone = sum(entry["documents"] for reasons in removed.values() for domains in reasons.values() for entry in domains.values())
    assert work.info["documents_before"] == corpus.count == work.info["documents"] + gone
    left = {d.id: d.text for d in Corpus(work.out, {}).documents()}
    assert left["7"].startswith("café The")
    assert work.info["changed"]["unicode"] == sum("Ã" in d.text for d in corpus.documents())
    assert {"0", "10"}.isdisjoint(left)
    assert "20" in left  # code, which this rule leaves alone
    shown = json.loads((work.out / "removed.json").read_text())["gopher_quality"]["too few words"]
    assert len(shown) == 5
    assert shown[0] == {"id": "0", "source": "made", "domain": "prose", "text": "tiny"}


def test_rules_with_domains_see_only_these(corpus, tmp_path):
    work = stage(clean, tmp_path / "o", corpus, rules=[{"name": "language", "keep": ["de"], "domains": ["talk"]}], processes=1)
    assert set(work.info["removed"]["language"]) <= {"language en", "language unknown"}
    assert work.info["by_domain"]["prose"]["documents"] == sum(d.domain == "prose" for d in corpus.documents())
    assert "talk" not in work.info["by_domain"]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_same_bytes_on_any_engine_and_number_of_processes(engine, corpus, lines, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for name, function, given, options in (
            ("collect", collect, (), {"sources": lines}),
            ("clean", clean, (corpus,), {"rules": RULES}),
            ("deduplicate", deduplicate, (corpus,), {}),
        ):
            one = stage(function, tmp_path / name / "one", *given, **options, processes=1)
            many = stage(function, tmp_path / name / "many", *given, **options, engine=engine, processes=2)
            assert prints(one.out) == prints(many.out)
            assert one.info == many.info
    finally:
        if engine == "ray":
            ray.shutdown()


def test_errors_travel_from_workers(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\nbroken\n')
    with pytest.raises(DataError, match=r"x.jsonl:2: the line is no JSON"):
        stage(collect, tmp_path / "o", sources=[{"name": "jsonl", "files": [str(tmp_path / "x.jsonl")]}], parts=2, processes=2)


def test_a_worker_that_dies_is_an_error(tmp_path):
    with pytest.raises(BessemerError, match="a data worker ended with code 3"), workers.Pool(processes=2) as pool:
        pool.run(os._exit, [{"status": 3}, {"status": 3}])


def test_no_worker_is_left_behind():
    with workers.Pool(processes=2) as pool:
        pool.run(fine, [{"x": 1}, {"x": 2}])
        running = [worker.pid for worker in pool._workers]
    assert len(running) == 2
    for pid in running:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def fine(x):
    return x


def test_an_interrupted_stage_goes_on_where_it_stood(corpus, tmp_path, monkeypatch):
    from bessemer.data import rules

    whole = stage(clean, tmp_path / "whole", corpus, rules=RULES, processes=1)
    calls, real = [], rules.clean_shard

    def clean_shard(**unit):
        calls.append(unit["index"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(**unit)

    clean_shard.__qualname__ = "clean_shard"
    monkeypatch.setattr(rules, "clean_shard", clean_shard)
    with pytest.raises(KeyboardInterrupt):
        stage(clean, tmp_path / "cut", corpus, rules=RULES, processes=1)
    assert calls == [0, 1, 2, 3]
    (tmp_path / "cut/shards/.00003-torn.partial").write_bytes(b"torn")
    again = stage(clean, tmp_path / "cut", corpus, rules=RULES, processes=1)
    assert calls[4] == 3  # the first three are not done again
    assert prints(again.out) == prints(whole.out)
    assert again.info == whole.info


def test_leftovers_of_other_inputs_are_not_used(corpus, tmp_path, monkeypatch):
    other = write_corpus(tmp_path / "c", list(texts(200)), shard_bytes=12_000)
    whole = stage(clean, tmp_path / "whole", other, rules=RULES, processes=1)
    monkeypatch.setattr("bessemer.run.stages.clean.assemble", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage(clean, tmp_path / "cut", corpus, rules=RULES, processes=1)
    monkeypatch.undo()
    again = stage(clean, tmp_path / "cut", other, rules=RULES, processes=1)
    assert prints(again.out) == prints(whole.out)


KILLED = """
import sys
from pathlib import Path
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus
from bessemer.run.stages.deduplicate import deduplicate
from bessemer.run.stages.clean import clean
work = Work(Path(sys.argv[1]))
work.on_progress = lambda done, *_: print("at", done, flush=True)
{"clean": clean, "deduplicate": deduplicate}[sys.argv[3]](work, Corpus.open(sys.argv[2]), processes=2)
"""


@pytest.mark.parametrize("name", ["clean", "deduplicate"])
def test_killed_and_given_again(name, corpus, tmp_path):
    function = {"clean": clean, "deduplicate": deduplicate}[name]
    whole = stage(function, tmp_path / "whole", corpus, processes=1)
    (tmp_path / "cut").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(corpus.folder), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.3)  # its workers end with it
    assert not (tmp_path / "cut/counts.json").exists()
    again = stage(function, tmp_path / "cut", corpus, processes=1)
    assert prints(again.out) == prints(whole.out)
