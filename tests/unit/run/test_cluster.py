"""Jobs for clusters say what the recipe's mesh asks for, in a form the cluster's own tools can read."""

import subprocess

import pytest

from bessemer import cli
from tests.corpus import recipe


@pytest.fixture
def file(tmp_path):
    (tmp_path / "it's.toml").write_text(recipe(tmp_path / "corpus"))
    return tmp_path / "it's.toml"


def test_a_slurm_script_is_a_shell_script_that_starts_every_rank(file, capsys):
    assert cli.main(["launch", "--slurm", str(file), "mesh.data=8", "mesh.tensor=2"]) == 0
    text = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "#SBATCH --nodes=2" in text
    assert "--nnodes=2 --nproc-per-node=8" in text
    assert "mesh.data=8 mesh.tensor=2" in text


def test_a_manifest_is_yaml_with_a_pod_a_node(file, capsys):
    yaml = pytest.importorskip("yaml")
    assert cli.main(["launch", "--kubernetes", str(file), "mesh.data=16", "--per-node", "4"]) == 0
    service, job = yaml.safe_load_all(capsys.readouterr().out)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    assert job["spec"]["completionMode"] == "Indexed"
    words = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert words[-3:] == ["run", str(file), "mesh.data=16"]
    assert f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}" in words


def test_ranks_that_fill_no_machines_are_refused(file, capsys):
    assert cli.main(["launch", "--slurm", str(file), "mesh.data=12"]) == 2
    assert "12 ranks don't fill machines of 8" in capsys.readouterr().err
