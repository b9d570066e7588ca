import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from tests.unit.serve.toy import byte_tokenizer

    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), [("t", "h"), ("th", "e"), ("a", "b"), ("Ġ", "a")])
