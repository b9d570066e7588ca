import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from toy import byte_tokenizer

    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), [("t", "h"), ("th", "e"), ("a", "b"), ("Ġ", "a")])


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models run many times faster without waiting for a second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
