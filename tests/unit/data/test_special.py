"""Special tokens kept for objectives: in the vocabulary, found by name, and never made from text."""

from bessemer.data.special import BLANKS, MASK, REGULAR, SETS, all_of, find
from tests.unit.data.token_stores import small_corpus, train


def test_a_tokenizer_keeps_what_it_is_told_to():
    made = train(small_corpus(), vocabulary=420, reserve=["mask", "modes", "blanks"])
    ids = [find(made, name, "key") for name in (MASK, REGULAR)] + all_of(made, BLANKS, "key", least=32)
    assert len(set(ids)) == 34
    assert made.vocabulary_size == 420
    for name in (MASK, BLANKS[31]):
        assert find(made, name, "key") not in made.encode(f"a {name} b")
        assert find(made, name, "key") in made.encode(f"a {name} b", special=True)
        assert made.bytes_of(find(made, name, "key")) == b""


def test_sets_share_no_token():
    names = [name for tokens in SETS.values() for name in tokens]
    assert len(names) == len(set(names))


def test_a_family_is_found_as_far_as_it_goes():
    class Few:
        vocabulary_size, special_ids = 9, {"<extra_id_0>": 4, "<extra_id_1>": 5, BLANKS[3]: 8}

    assert all_of(Few(), BLANKS, "key") == [4, 5]
