import io

import pytest
from token_stores import texts

from bessemer.data.tokenizer import AWKWARD, Tokenizer, write_tokenizer
from bessemer.data.tokenizer_read import read_tokenizer

spm = pytest.importorskip("sentencepiece")
KINDS = {
    "unigram": {"model_type": "unigram"},
    "unigram_bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "bpe": {"model_type": "bpe", "add_dummy_prefix": False},
    "users": {"model_type": "bpe", "user_defined_symbols": ["<call>", "<back>"], "remove_extra_whitespaces": False, "add_dummy_prefix": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_as_sentencepiece_does(kind, tmp_path):
    written = io.BytesIO()
    options = {"vocab_size": 420, "character_coverage": 0.995, "minloglevel": 2, "hard_vocab_limit": False}
    spm.SentencePieceTrainer.train(sentence_iterator=iter(texts(400, 1)), model_writer=written, **options, **KINDS[kind])
    (tmp_path / "a.model").write_bytes(written.getvalue())
    backend, notes = read_tokenizer(tmp_path / "a.model")
    write_tokenizer(tmp_path, backend, notes)
    read, peer = Tokenizer.load(tmp_path), spm.SentencePieceProcessor(model_proto=written.getvalue())
    assert read.vocabulary_size == peer.vocab_size()
    assert (read.end, read.begin) == (peer.eos_id(), peer.bos_id())
    extra = ["<call> a<back>"] if kind == "users" else []
    for text in [*texts(150, 2), *(t for t in AWKWARD if "\x00" not in t), "  two  spaces  ", "q" * 40, "日本 unseen ж ☃☃", *extra]:
        assert read.encode(text) == peer.encode(text), repr(text)
        if peer.unk_id() not in peer.encode(text):  # it writes those as a question mark, we leave them out
            assert read.decode(read.encode(text)) == peer.decode(peer.encode(text)), repr(text)
