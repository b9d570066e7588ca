import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from tests.unit.serve.toy import byte_tokenizer

    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), [("t", "h"), ("th", "e"), ("a", "b"), ("Ġ", "a")])


@pytest.fixture(scope="session")
def model(tokenizer):
    from tests.unit.serve.toy import tiny

    return tiny(tokenizer.vocabulary_size)


TEXTS = [
    ("the cat sat on the mat. ", "prose"),
    ("def f(x):\n    return x + 1\n" * 12, "code"),
    ("ab", "prose"),
    ("naïve café 🙂 the end", "prose"),
    ("", "prose"),
    ("x = [a, b]\n", "code"),
    ("the ab the ab a the " * 30, "prose"),
]


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def tokens(tokenizer, tmp_path_factory):
    """A store whose documents are all held out."""
    from bessemer.core.artifact import seal
    from bessemer.data.corpus import write_corpus
    from bessemer.data.document import Document
    from bessemer.data.store import write_store
    from bessemer.data.tokens import Tokens

    folder = tmp_path_factory.mktemp("data")
    corpus = write_corpus(folder / "corpus", [Document(text, "s", domain, str(i)) for i, (text, domain) in enumerate(TEXTS)])
    (folder / "tokens").mkdir()
    info = write_store(corpus, tokenizer, folder / "tokens", held_out=1.0, processes=1)
    seal(folder / "tokens", "tokens", recipe={}, parents={}, info=info)
    return Tokens.open(folder / "tokens")
