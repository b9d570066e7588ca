"""Joint runs through their recipe: resumed as if never stopped, packages that rebuild, spans, balance, and what is refused."""

import html
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bessemer
from bessemer import cli
from bessemer.core.batch import Batch
from bessemer.models.attach import objective_of
from bessemer.models.families.decoder import Decoder
from bessemer.run import report
from bessemer.train.hooks.conflict import cells
from tests.corpus import corpus, recipe

ADAMW = '[{ name = "adamw", lr = 0.003 }]'
PATCHES = 'adapter = { name = "patches", size = 8 }'
TASKS = [
    'name = "text", share = 2.0',
    f'name = "masked", {PATCHES}, objective = "mae"',
    f'name = "pairs", {PATCHES}, objective = {{ name = "clip", group = 2, words = 20 }}',
    f'name = "captions", {PATCHES}, objective = {{ name = "captioning", words = 20 }}, start = 0.25',
    f'name = "views", {PATCHES}, objective = {{ name = "lejepa", group = 2 }}, stop = 0.5, weight = 0.3',
]


class StopOnce:
    """A hook that fails at a step, the first time it gets there."""

    def __init__(self, run, *, file: str, step: int) -> None:
        self.file, self.step = Path(file), step

    def due(self, report) -> bool:
        return report.progress.step == self.step and not self.file.exists()

    def __call__(self, report) -> None:
        self.file.touch()
        raise RuntimeError("stopped for the test")

    def close(self) -> None:
        return


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokens and scenes, made once."""
    folder = tmp_path_factory.mktemp("joint")
    corpus(folder / "corpus")
    stage = '[[stage]]\ndo = "collect_examples"\nsources = [{ name = "scenes", count = 80 }]\nheld_out = 0.2\n'
    (folder / "base.toml").write_text(recipe(folder / "corpus", steps=1, optim=ADAMW, hooks="[]") + stage)
    assert cli.main(["run", str(folder / "base.toml"), "--out", str(folder / "base"), "--quiet"]) == 0
    return folder


def run(made, name, tasks=TASKS, stops=None, more="", **train):
    given = {"optim": ADAMW, "hooks": '[{ name = "save", every = 2 }]', "steps": 8, "batch": 12, "micro_batch": 4, "length": 64} | train
    if stops:
        given["hooks"] = (
            f'[{{ name = "save", every = 2 }}, {{ name = "tests.unit.train.test_joint.StopOnce", file = "{made}/{name}.stopped", step = {stops} }}]'
        )
    body = recipe(made / "corpus", **given, task=f"[{', '.join('{ ' + task + ' }' for task in tasks)}]")
    head, _, stages = body.partition("[[stage]]")
    base = f"{made}/base"
    wires = f'inputs = {{ tokens = "{base}/tokenize", tokenizer = "{base}/train_tokenizer", examples = "{base}/collect_examples" }}\n'
    (made / f"{name}.toml").write_text(f"{head}[[stage]]{stages.split('[[stage]]')[-1]}{wires}{more}")
    return cli.main(["run", str(made / f"{name}.toml"), "--out", str(made / name), "--quiet"])


def lines(folder):
    return [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", [{}, {"mixed": True}, {"balance": '"agvm"'}, {"balance": '"gradient_norm"'}], ids=str)
def test_a_joint_run_that_was_stopped_goes_on_bitwise(made, how):
    name = "-".join(str(value).strip('"') for value in how.values()) or "plain"
    assert run(made, f"whole-{name}", **how) == 0
    assert run(made, f"torn-{name}", stops=5, **how) != 0
    assert (made / f"torn-{name}.stopped").exists()
    assert run(made, f"torn-{name}", stops=5, **how) == 0
    whole, torn = (load_file(made / f"{kind}-{name}" / "train" / "model.safetensors") for kind in ("whole", "torn"))
    assert whole.keys() == torn.keys()
    assert all(torch.equal(whole[key], torn[key]) for key in whole)
    found = [line["terms"] for line in lines(made / f"whole-{name}") if "loss" in line]
    assert "captions/captioning" not in found[1]
    assert "captions/captioning" in found[2]
    assert "views/predicted" in found[3]
    assert "views/predicted" not in found[4]


def test_the_package_rebuilds_with_adapters_and_task_parts(made):
    assert run(made, "packed", steps=2) == 0
    model = bessemer.load(made / "packed" / "train")
    assert list(model.adapters) == ["patches"]
    assert set(model.tasks) == {"masked", "pairs", "views"}
    pairs = objective_of(model, "pairs")
    assert pairs.parts["scale"].log.item() == pytest.approx(2.66, abs=0.05)
    stored = load_file(made / "packed" / "train" / "model.safetensors")
    assert torch.equal(pairs.adapter.project.weight, stored["adapters.patches.project.weight"])
    assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, model.vocabulary)


def test_later_training_keeps_what_earlier_tasks_learned(made):
    more = f'\n[[stage]]\ndo = "train"\nname = "later"\nsteps = 2\nbatch = 4\nlength = 64\ncompile = false\nhooks = []\noptim = {ADAMW}\n'
    more += f"task = [{{ {TASKS[1].replace('masked', 'again')} }}]\n"
    more += f'inputs = {{ tokens = "{made}/base/tokenize", tokenizer = "{made}/base/train_tokenizer", examples = "{made}/base/collect_examples" }}\n'
    assert run(made, "stages", steps=2, more=more) == 0
    first, later = load_file(made / "stages/train/model.safetensors"), load_file(made / "stages/later/model.safetensors")
    assert torch.equal(first["tasks.pairs.scale.log"], later["tasks.pairs.scale.log"])
    assert not torch.equal(first["adapters.patches.project.weight"], later["adapters.patches.project.weight"])


def test_tasks_without_a_row_in_the_step_are_named(made):
    assert run(made, "absent", steps=1, hooks='["conflict"]') == 0
    (written,) = [line["conflict"] for line in lines(made / "absent") if "conflict" in line]
    assert written["absent"]
    assert not set(written["absent"]) & set(written["cosine"])
    told = f"without {', '.join(written['absent'])}: no row in this step's batch"
    assert told in (made / "absent/log.txt").read_text()
    assert told in html.unescape(report.write(made / "absent", made / "page").read_text())


def test_each_way_of_balancing_trains(made):
    for name in ("uncertainty", "projection"):
        assert run(made, f"balance-{name}", steps=3, balance=f'"{name}"', hooks='["conflict"]') == 0
    written = [line["conflict"] for line in lines(made / "balance-projection") if "conflict" in line]
    assert written[-1]["cosine"]["masked"]["masked"] == pytest.approx(1.0, abs=1e-3)
    assert sum(written[-1]["compute"].values()) == pytest.approx(1.0, abs=1e-3)
    head, rows = cells(written[-1])
    assert head[:4] == ["task", "loss", "compute", "gradient"]
    assert [row[0] for row in rows] == head[4:] == list(written[-1]["loss"])
    for a, row in written[-1]["cosine"].items():
        assert all(-1.001 <= value <= 1.001 and written[-1]["cosine"][b][a] == value for b, value in row.items())


def test_evaluations_of_pictures_come_with_the_run(made):
    tasks = '["rank_me", { name = "linear_probe", labels = ["colour"] }, { name = "nearest", labels = ["colour"] }, "zero_shot", { name = "retrieval", pool = 8 }]'
    assert run(made, "measured", steps=2, hooks=f'[{{ name = "evaluate", times = 1, tasks = {tasks} }}]') == 0
    found = next(line["evaluation"] for line in lines(made / "measured") if "evaluation" in line)
    assert 1.0 <= found["rank_me"]["rank"] <= 32.0
    assert 0.0 <= found["linear_probe"]["colour"] <= 1.0
    assert set(found["zero_shot"]) == {"shape", "colour", "size", "number", "place"}
    assert found["retrieval"]["caption_at_1"] <= found["retrieval"]["caption_at_5"]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (['objective = "mae"'], "no adapter"),
        (['objective = "mae", adapter = { name = "log_mel" }'], "reads a sound, and the examples have picture"),
        (['objective = "mae", adapter = { name = "patches", size = 8, picture = 16 }'], "shape"),
        (['objective = "mae", adapter = { name = "patches", size = 5 }'], "don't fill"),
        ([f'objective = {{ name = "clip", words = 60 }}, {PATCHES}'], "an example takes 76 columns"),
        ([f'objective = {{ name = "clip", group = 16, words = 20 }}, {PATCHES}'], "groups are of 16 rows, and a batch has 12"),
        ([f'objective = "mae", {PATCHES}, examples = "elsewhere"'], "no stage 'elsewhere'"),
        ([f'objective = "mae", {PATCHES}', 'name = "text"'], "two tasks are called 'text'"),
        ([f'name = "a", objective = "mae", {PATCHES}', 'name = "b", objective = "mae", adapter = { name = "patches", size = 4 }'], "share each adapter"),
        (['start = 0.5'], "no task at all"),
        (['start = 0.5, stop = 0.2', 'name = "b"'], "start before stop"),
        (['name = "a b"'], "letters"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_are_refused(made, capsys, tasks, said, request):
    assert run(made, f"bad-{abs(hash(request.node.name)) % 10**6}", tasks=tasks) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_batch_without_pictures_passes_the_adapter_unchanged(made):
    if not (made / "packed").exists():
        assert run(made, "packed", steps=2) == 0
    model = bessemer.load(made / "packed" / "train")
    x = torch.randn(2, 5, 32)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert model.adapters["patches"](x, Batch(tokens, tokens)) is x


def test_examples_need_no_token_store(made):
    wires = f'inputs = {{ tokenizer = "{made}/base/train_tokenizer", examples = "{made}/base/collect_examples" }}\n'
    body = f'model = {{ name = "decoder", depth = 1, width = 32, heads = 2, ffn = 64 }}\nsteps = 3\nbatch = 4\nlength = 64\ncompile = false\noptim = {ADAMW}\n'
    rank = '[{ name = "evaluate", tasks = ["rank_me"] }]'

    def train(name, task, hooks):
        (made / f"{name}.toml").write_text(f'[[stage]]\ndo = "train"\n{wires}{body}hooks = {hooks}\ntask = [{{ {task} }}]\n')
        return cli.main(["run", str(made / f"{name}.toml"), "--out", str(made / name), "--quiet"])

    assert train("alone", TASKS[1], rank) == 0
    assert any("rank_me" in line.get("evaluation", {}) for line in lines(made / "alone"))
    assert train("text-alone", TASKS[0], rank) == 2
    assert train("bits-alone", TASKS[1], '["evaluate"]') == 2


def test_a_representation_is_embedded_in_a_generator(made):
    """ERW: embedding, adapters and first layers are the earlier model's, the others what the seed gives; then flow matching goes on from there."""
    wires = f'inputs = {{ tokenizer = "{made}/base/train_tokenizer", examples = "{made}/base/collect_examples" }}\n'
    train = f'[[stage]]\ndo = "train"\n{wires}steps = 2\nbatch = 4\nlength = 64\ncompile = false\nhooks = []\noptim = {ADAMW}\n'
    model = '{ name = "decoder", depth = %s, width = 32, heads = 2, ffn = 64 }'
    body = f'seed = 4\n{train}name = "first"\nmodel = {model % 2}\ntask = [{{ {TASKS[1]} }}]\n'
    body += f'[[stage]]\ndo = "embed_representation"\nmodel = {model % 3}\nlayers = 2\n'
    body += f'{train}name = "second"\ntask = [{{ name = "flow", {PATCHES}, objective = "flow_matching" }}]\n'
    (made / "erw.toml").write_text(body)
    assert cli.main(["run", str(made / "erw.toml"), "--out", str(made / "erw"), "--quiet"]) == 0
    first, begun, then = (load_file(made / "erw" / stage / "model.safetensors") for stage in ("first", "embed_representation", "second"))
    fresh = dict(Decoder(bessemer.load(made / "erw" / "first").vocabulary, 4, depth=3, width=32, heads=2, ffn=64).named_parameters())
    for name, value in begun.items():
        taken = name.startswith(("embed.", "adapters.", "blocks.0.", "blocks.1."))
        assert torch.equal(value, first[name] if taken else fresh[name]), name
    assert not torch.equal(then["blocks.2.mlp.down.weight"], begun["blocks.2.mlp.down.weight"])
    assert "tasks.flow.head.weight" in then
    (made / "wide.toml").write_text(body.replace("depth = 3, width = 32", "depth = 3, width = 64"))
    assert cli.main(["run", str(made / "wide.toml"), "--out", str(made / "erw"), "--quiet"]) == 2
