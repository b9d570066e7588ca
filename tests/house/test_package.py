"""What an installation that is no checkout holds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    listed = subprocess.run(["git", "ls-files", "bessemer"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split() if (ROOT / name).exists()}
    for name in {*tracked, "pyproject.toml", "README.md", "LICENSE"}:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", str(tmp_path / "source"), "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert tracked <= set(zipfile.ZipFile(wheel).namelist())
