"""A mix that follows the run's losses decides the same on several ranks as on one."""

import json

import pytest

from bessemer import cli
from tests.corpus import corpus, recipe

ADAMW = '[{ name = "adamw", lr = 0.003, eps = 1e-3 }]'


def lines(folder, key):
    return [line for line in map(json.loads, (folder / "train" / "metrics.jsonl").read_text().splitlines()) if key in line]


@pytest.mark.parametrize("mix", ["aioli", "loss_driven"])
def test_ranks_mix_as_one_process_does(tmp_path, mix):
    corpus(tmp_path / "corpus")
    options = '{ name = "aioli", every = 8, learn = 0.5 }' if mix == "aioli" else '{ name = "loss_driven", every = 3 }'
    (tmp_path / "r.toml").write_text(recipe(tmp_path / "corpus", steps=12, optim=ADAMW, hooks="[]", mix=options))
    assert cli.main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "one"), "--quiet"]) == 0
    stages = f'inputs = {{ tokens = "{tmp_path}/one/tokenize", tokenizer = "{tmp_path}/one/train_tokenizer" }}\n'
    head, _, rest = (tmp_path / "r.toml").read_text().partition("[[stage]]")
    (tmp_path / "r.toml").write_text(f"{head}[[stage]]{rest.split('[[stage]]')[-1]}{stages}")
    assert cli.main(["run", str(tmp_path / "r.toml"), "mesh.data=2", "--out", str(tmp_path / "two"), "--quiet"]) == 0
    one, two = (lines(tmp_path / name, "mix") for name in ("one", "two"))
    assert len(one) >= 3
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert b["mix"]["text"] == pytest.approx(a["mix"]["text"], rel=1e-3)
    found = [[line["loss"] for line in lines(tmp_path / name, "loss")] for name in ("one", "two")]
    assert found[1] == pytest.approx(found[0], rel=1e-3)
