import io
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.errors import BessemerError
from bessemer.core.work import Work
from bessemer.data.tokenizer import AWKWARD, Tokenizer
from bessemer.run.stages.load_tokenizer import load_tokenizer
from tests.folders import folder
from tests.unit.data.token_stores import texts

spm = pytest.importorskip("sentencepiece")
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
USERS = {"user_defined_symbols": ["<call>", "<back>"]}
KINDS = {
    "unigram": {"model_type": "unigram"},
    "unigram_bytes": {"model_type": "unigram", "byte_fallback": True, **IDENTITY},
    "llama": {"model_type": "bpe", "byte_fallback": True, "split_digits": True, **IDENTITY},
    "bpe": {"model_type": "bpe", "add_dummy_prefix": False},
    "spaces_kept": {"model_type": "bpe", "remove_extra_whitespaces": False},
    "users": {"model_type": "bpe", **USERS},
    "users_unigram": {"model_type": "unigram", **USERS},
    "users_plain": {"model_type": "bpe", "remove_extra_whitespaces": False, "add_dummy_prefix": False, **USERS},
    "users_of_letters": {"model_type": "unigram", "user_defined_symbols": ["th", "re"], **IDENTITY},
    "identity": {"model_type": "bpe", **IDENTITY},
    "users_identity": {"model_type": "bpe", "add_dummy_prefix": False, **IDENTITY, **USERS},
    "word": {"model_type": "word"},
    "char": {"model_type": "char"},
    "spaces_behind": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
}
BY_TOKENIZERS = ("llama", "identity", "users_identity")
TEXT = st.lists(
    st.sampled_from(
        [
            "<call>",
            "<back>",
            "</s>",
            "<unk>",
            "\r\n",
            " ",
            "  ",
            "\u2581",
            "the",
            "re",
            "42",
            "e\u0301",
            "a\u0323\u0300",
            "\ufb01\u0301",
            "\x1f",
            "日",
            "\t",
        ]
    )
    | st.text(max_size=4)
).map("".join)
_made = {}


def made(kind):
    """A model trained by SentencePiece, as the stage takes it over; and SentencePiece itself."""
    if kind not in _made:
        written, place = io.BytesIO(), folder()
        options = {"vocab_size": 420, "character_coverage": 0.995, "minloglevel": 2, "hard_vocab_limit": False}
        spm.SentencePieceTrainer.train(sentence_iterator=iter(texts(400, 1)), model_writer=written, **options, **KINDS[kind])
        (place / "a.model").write_bytes(written.getvalue())
        load_tokenizer(Work(place), path=str(place / "a.model"))
        _made[kind] = Tokenizer.load(place), spm.SentencePieceProcessor(model_proto=written.getvalue())
    return _made[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_as_sentencepiece_does(kind):
    read, peer = made(kind)
    assert read.vocabulary_size == peer.vocab_size()
    assert (read.end, read.begin) == (peer.eos_id(), peer.bos_id())
    assert read.engine == ("tokenizers" if kind in BY_TOKENIZERS else "sentencepiece")
    extra = ["  two  spaces  ", "q" * 40, "日本 unseen ж ☃☃", "<call> a<back>", " <call>  a <back> b", "a\r\nb", "<s>a</s> <unk>"]
    for text in [*texts(150, 2), *AWKWARD, *extra]:
        ids = peer.encode(text)
        assert read.encode(text) == ids, repr(text)
        if peer.unk_id() not in ids:  # it writes those as a question mark, `tokenizers` leaves them out
            assert read.decode(ids) == peer.decode(ids), repr(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_encodes_any_text_as_sentencepiece_does(kind, text):
    read, peer = made(kind)
    assert read.encode(text) == peer.encode(text)
    assert read.encode_batch([text, "a"]) == peer.encode([text, "a"])


def test_documents_special_tokens_and_lone_surrogates_where_sentencepiece_encodes():
    read, peer = made("users")
    ids, lengths = read.encode_documents([b"<call> a", b"", "日".encode()])
    expected = [[*peer.encode(text), read.end] for text in ("<call> a", "", "日")]
    assert ids.tolist() == [i for each in expected for i in each]
    assert lengths.tolist() == [len(each) for each in expected]
    assert read.encode("a</s>b", special=True) == [*peer.encode("a"), read.end, *peer.encode("b")]
    assert read.decode([*peer.encode("the"), read.end, 10**6], special=True) == "the</s>"
    assert read.decode([*peer.encode("the"), read.end]) == "the"
    assert read.encode("a\ud800b") == peer.encode("a\ufffdb")


def test_it_stays_itself_when_saved_and_is_told_from_what_tokenizers_does(tmp_path):
    read, peer = made("users")
    read.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.engine) == (read.fingerprint, "sentencepiece")
    assert again.encode("<call> a<back>") == peer.encode("<call> a<back>")
    (tmp_path / "bessemer_tokenizer.json").write_text('{"end": 2, "begin": 1, "pad": 2, "fast": false}')
    assert Tokenizer.load(tmp_path).fingerprint != read.fingerprint


def test_without_sentencepiece_or_its_model_the_error_says_so(tmp_path, monkeypatch):
    shutil.copytree(made("users")[0].folder, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(BessemerError, match=r"sentencepiece.*not installed") as caught:
            Tokenizer.load(tmp_path / "a")
        assert "bessemer[hub]" in str(caught.value)
        assert made("llama")[0].encode("the")
    (tmp_path / "a" / "tokenizer.model").unlink()
    with pytest.raises(BessemerError, match="no SentencePiece model"):
        Tokenizer.load(tmp_path / "a")
