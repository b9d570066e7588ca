"""Folders for what several tests share; all are gone when the tests end."""

import os
import tempfile
from pathlib import Path

if "BESSEMER_TEST_FOLDERS" not in os.environ:
    os.environ["BESSEMER_TEST_FOLDERS"] = tempfile.mkdtemp(prefix="bessemer-tests-")
ROOT = Path(os.environ["BESSEMER_TEST_FOLDERS"])
"""One for a session: the environment hands it to the workers and ranks that it starts."""


def folder() -> Path:
    """A new one."""
    return Path(tempfile.mkdtemp(dir=ROOT))
