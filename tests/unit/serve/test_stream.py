"""Text in pieces: the same whole wherever bytes are cut, and nothing shown too early."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bessemer.core.errors import BessemerError
from bessemer.serve.stream import TextStream


def pieces(content, cuts, stop=()):
    """What the stream gives for `content` cut at these places."""
    stream = TextStream(stop)
    out = []
    places = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    for start, end in itertools.pairwise(places):
        out.append(stream.push(content[start:end]))
        if stream.stopped:
            break
    return [*out, stream.close()], stream


def reference(text, stop):
    """Cut before the stop string that is complete first, read character by character."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.text("aé🙂\n"), st.lists(st.integers(0, 200)))
def test_characters_come_whole(text, cuts):
    out, _ = pieces(text.encode(), cuts)
    assert "".join(out) == text
    assert "�" not in "".join(out)


@given(st.text("abc", max_size=30), st.lists(st.integers(0, 200)), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_stop_string_that_is_complete_first_ends_the_text_wherever_tokens_are_cut(text, cuts, stop):
    out, stream = pieces(text.encode(), cuts, stop)
    assert "".join(out) == reference(text, stop)
    assert stream.stopped == (reference(text, stop) != text)


@given(st.text("abc", max_size=20))
def test_what_is_shown_is_never_taken_back(text):
    stream = TextStream(["abba", "bb"])
    shown = ""
    for byte in text.encode():
        shown += stream.push(bytes([byte]))
        assert reference(text, ["abba", "bb"]).startswith(shown)


def test_held_back_text_comes_when_it_is_no_stop_string_after_all():
    stream = TextStream(["END"])
    assert stream.push(b"xE") == "x"
    assert stream.push(b"N") == ""
    assert stream.push(b"x") == "ENx"
    assert stream.push(b"EN") == ""
    assert stream.close() == "EN"


def test_bytes_that_are_no_utf8_become_replacement_characters():
    stream = TextStream()
    assert stream.push(b"a\xff") + stream.push(b"\xe2\x82") + stream.close() == "a�" + "�"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(BessemerError, match="stop string is empty"):
        TextStream(["", "x"])
