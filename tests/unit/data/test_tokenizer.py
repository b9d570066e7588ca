import base64
import json

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.data.byte_level import characters
from bessemer.data.fast_bpe import FastBPE
from bessemer.data.tokenizer import AWKWARD, Tokenizer, write_tokenizer
from bessemer.data.tokenizer_read import read_tokenizer
from bessemer.data.tokenizer_train import LLAMA3_SPLIT, sample
from tests.folders import folder
from tests.unit.data.token_stores import small_corpus, small_tokenizer, texts, train

_made = {}
AWKWARD_TEXT = st.text(st.sampled_from("ab Z9.!'\n\r\t\u00a0\u3000\x0b\x01\x02\x85é日\u200b"), max_size=40) | st.text(max_size=30)


def made(algorithm, split="gpt2"):
    key = (algorithm, split)
    if key not in _made:
        _made[key] = train(small_corpus(), algorithm=algorithm, split=split)
    return _made[key]


@pytest.mark.parametrize("split", ["gpt2", "llama3"])
def test_trained_bpe_runs_through_tiktoken(split):
    assert made("bpe", split).fast


@pytest.mark.parametrize("split", ["gpt2", "llama3"])
@settings(max_examples=300, deadline=None)
@given(text=AWKWARD_TEXT)
def test_the_fast_path_equals_tokenizers(split, text):
    tokenizer = made("bpe", split)
    tokenizer.backend.encode_special_tokens = True
    assert tokenizer.encode(text) == tokenizer.backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("split", ["gpt2", "llama3"])
@settings(max_examples=100, deadline=None)
@given(many=st.lists(AWKWARD_TEXT, max_size=6))
def test_documents_together_are_documents_one_by_one(split, many):
    tokenizer = made("bpe", split)
    ids, lengths = tokenizer.encode_documents([text.encode() for text in many])
    alone = [[*tokenizer.encode(text), tokenizer.end] for text in many]
    assert ids.tolist() == [i for each in alone for i in each]
    assert lengths.tolist() == [len(each) for each in alone]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@settings(max_examples=60, deadline=None)
@given(text=AWKWARD_TEXT)
def test_bytes_of_tokens_are_the_texts_bytes_and_decoding_gives_it_back(algorithm, text):
    tokenizer = made(algorithm)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.bytes_of(i) for i in ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths()[ids]) == len(text.encode())


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_transformers_loads_what_is_written(algorithm):
    transformers = pytest.importorskip("transformers")
    tokenizer = made(algorithm)
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer.folder)
    for text in [*AWKWARD, *texts(20, 5)]:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token_id) == (tokenizer.end, tokenizer.pad, tokenizer.begin)
    assert loaded("a")["input_ids"][0] == tokenizer.begin


def test_special_tokens_in_documents_are_text():
    tokenizer = small_tokenizer()
    assert tokenizer.end not in tokenizer.encode("a<|end|>b")
    assert tokenizer.encode("a<|end|>b", special=True).count(tokenizer.end) == 1
    assert tokenizer.bytes_of(tokenizer.end) == b""
    assert tokenizer.decode([tokenizer.end]) == ""
    assert tokenizer.decode([tokenizer.end], special=True) == "<|end|>"


def test_long_runs_and_lone_surrogates_are_encoded():
    tokenizer = small_tokenizer()
    for text in (" " * 300_000, "\n" * 50_000 + "x", "\u3000" * 100_000, "a" * 300_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_training_again_gives_the_same_tokenizer():
    assert train(small_corpus()).fingerprint == small_tokenizer().fingerprint
    assert made("bpe", "llama3").fingerprint != small_tokenizer().fingerprint


def test_saving_and_loading_keeps_everything():
    place = folder()
    small_tokenizer().save(place)
    again = Tokenizer.load(place)
    assert again.fingerprint == small_tokenizer().fingerprint
    assert (again.end, again.begin, again.pad, again.fast) == (0, 0, 1, True)


def test_the_sample_is_bounded_and_keyed():
    corpus = small_corpus()
    chosen = [list(sample(corpus, megabytes=corpus.bytes / 4e6, seed=seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert sum(len(text.encode()) for text in chosen[0]) < 0.45 * corpus.bytes
    assert len(list(sample(corpus, megabytes=10, seed=1))) == corpus.count


def test_a_tiktoken_rank_file_gives_tiktokens_ids(tmp_path):
    tokenizer = made("bpe", "llama3")
    tokens = [tokenizer.bytes_of(i) for i in range(2, tokenizer.vocabulary_size)]
    tokens = [bytes([i]) for i in range(256)] + [token for token in tokens if len(token) > 1]
    (tmp_path / "x.tiktoken").write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    backend, notes = read_tokenizer(tmp_path / "x.tiktoken", split="llama3", specials=["<|end|>", "<|more|>"])
    assert notes["fast"]
    write_tokenizer(tmp_path, backend, notes)
    read = Tokenizer.load(tmp_path)
    peer = tiktoken.Encoding("x", pat_str=LLAMA3_SPLIT, mergeable_ranks={token: i for i, token in enumerate(tokens)}, special_tokens={})
    assert read.end == len(tokens)
    for text in [*AWKWARD, *texts(50, 9)]:
        assert read.encode(text) == peer.encode_ordinary(text)
        assert read.backend.encode(text, add_special_tokens=False).ids == peer.encode_ordinary(text)


def test_the_fast_path_refuses_what_it_cannot_do():
    definition = json.loads(small_tokenizer().backend.to_str())
    assert FastBPE.of(definition)
    for change in ({"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "Whitespace"}}, {"model": definition["model"] | {"dropout": 0.1}}):
        assert FastBPE.of(definition | change) is None
    missing = {"model": definition["model"] | {"vocab": {k: v for k, v in definition["model"]["vocab"].items() if k != characters()[65]}}}
    assert FastBPE.of(definition | missing) is None


def test_a_disagreement_switches_the_fast_path_off():
    definition = json.loads(small_tokenizer().backend.to_str())
    fast = FastBPE.of(definition)
    other = made("unigram").backend
    assert fast.agrees(small_tokenizer().backend, AWKWARD)
    assert not fast.agrees(other, texts(20))


def test_a_tokenizer_json_as_llama_3_has_it(tmp_path):
    import tokenizers

    source = made("bpe", "llama3").definition
    model = source["model"] | {"merges": [" ".join(pair) for pair in source["model"]["merges"]], "ignore_merges": True}
    model["vocab"] = {token: i - 2 for token, i in source["model"]["vocab"].items() if i > 1}
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|eot_id|>"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": len(model["vocab"]) + i, "content": name, "special": True, **flags} for i, name in enumerate(names)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": names[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {names[0]: {"id": names[0], "ids": [added[0]["id"]], "tokens": [names[0]]}},
    }
    written = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "model": model}
    written |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "decoder": level | {"use_regex": True}}
    written["post_processor"] = {"type": "Sequence", "processors": [level, template]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": names[0], "eos_token": {"content": "<|eot_id|>"}}))
    read, peer = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.engine == "tiktoken"
    assert [read.backend.id_to_token(i) for i in (read.begin, read.end, read.pad)] == [names[0], "<|eot_id|>", "<|finetune_right_pad_id|>"]
    assert read.vocabulary_size == peer.get_vocab_size()
    for text in [*AWKWARD, *texts(50, 9), "1234567 12 I'LL \r\n\r\n  x\n \n", "a \u00a0b\u3000 \u3000c"]:
        assert read.encode(text) == peer.encode(text, add_special_tokens=False).ids
        assert read.decode(read.encode(text)) == text
    chat = "<|start_header_id|>user\n\nHi 123<|eot_id|>"
    assert read.encode(chat, special=True) == peer.encode(chat, add_special_tokens=False).ids
    assert read.decode(read.encode(chat)) == chat
