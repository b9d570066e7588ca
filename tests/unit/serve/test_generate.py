"""Generation: cached equals uncached, a batch equals each prompt alone, a stream equals the whole."""

import pytest
import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import BessemerError
from bessemer.serve.cache import Cache
from bessemer.serve.decode import longest_look
from bessemer.serve.generate import generate, stream
from bessemer.serve.sampler import Sampling, draw, pick
from tests.unit.serve.toy import tiny

PROMPTS = ["the cat", "a", "hello there, my friend", "", "ab ab ab", "a"]
SHAPES = {
    "grouped queries": {},
    "learned positions": {"positions": "learned", "norm": "layer", "mlp": "gelu", "kv_heads": 4, "attention_bias": "all", "mlp_bias": True},
    "window in every layer": {"window": 6},
    "window in one layer": {"window": 6, "window_layers": [1]},
    "reordered norm": {"norm_place": "reordered", "qk_norm": "whole"},
}
SAMPLED = {"temperature": 1.1, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 5}


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tokenizer):
    return tiny(tokenizer.vocabulary_size, **SHAPES[request.param])


@pytest.fixture(scope="module")
def plain(tokenizer):
    return tiny(tokenizer.vocabulary_size)


def uncached(model, tokenizer, prompt, count, how=None, key=0):
    """Token by token through the whole model each time, without a cache."""
    read = [tokenizer.begin, *tokenizer.encode(prompt)]
    written = []
    for place in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([read + written]))[:, -1]
        seen = torch.zeros(1, logits.shape[-1], dtype=torch.bool)
        seen[0, read + written] = True
        draws = torch.tensor(draw([key], place), dtype=torch.float64)
        written.append(int(pick(logits, draws, how or Sampling(temperature=0), seen)))
        if written[-1] == tokenizer.end:
            break
    return written


def test_cached_greedy_equals_uncached(model, tokenizer):
    for found in generate(model, tokenizer, PROMPTS[:4], max_tokens=30, temperature=0):
        assert found.tokens == uncached(model, tokenizer, found.prompt, 30)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, SAMPLED, {"temperature": 1.0}], ids=["greedy", "filtered", "plain"])
def test_a_batch_gives_what_each_prompt_alone_gives(model, tokenizer, settings):
    together = generate(model, tokenizer, PROMPTS, max_tokens=24, **settings)
    for prompt, found in list(zip(PROMPTS, together, strict=True))[:5]:
        assert generate(model, tokenizer, [prompt], max_tokens=24, **settings) == [found]
    assert generate(model, tokenizer, PROMPTS, max_tokens=24, rows=2, **settings) == together


def test_logits_through_the_cache_equal_those_without(model, tokenizer):
    tokens = torch.randint(0, tokenizer.vocabulary_size, (2, 30), generator=torch.Generator().manual_seed(1))
    cache, found = Cache(30, longest_look(model)), []
    with torch.no_grad():
        for start, stop in [(0, 9), *((i, i + 1) for i in range(9, 30))]:
            cache.make_room(stop - start)
            positions = torch.arange(start, stop).expand(2, -1)
            found.append(model(Batch(tokens[:, start:stop], positions), cache).logits())
            cache.advance()
        assert torch.allclose(torch.cat(found, 1), model(tokens), atol=1e-4)


def test_sampling_through_the_cache_equals_sampling_without(plain, tokenizer):
    from bessemer.core import rng

    read = [tokenizer.begin, *tokenizer.encode("the cat")]
    key = rng.key(5, "generate", ",".join(map(str, read)), 0)
    how = Sampling(**{name: value for name, value in SAMPLED.items() if name != "seed"})
    (found,) = generate(plain, tokenizer, ["the cat"], max_tokens=30, **SAMPLED)
    assert found.tokens == uncached(plain, tokenizer, "the cat", 30, how, key)


def test_equal_prompts_differ_and_seeds_differ_and_repeat(plain, tokenizer):
    one, two = generate(plain, tokenizer, ["the", "the"], max_tokens=20, seed=1)
    assert one.tokens != two.tokens
    assert generate(plain, tokenizer, ["the", "the"], max_tokens=20, seed=1) == [one, two]
    assert generate(plain, tokenizer, ["the"], max_tokens=20, seed=2)[0].tokens != one.tokens


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "filtered"])
def test_the_stream_is_the_whole_in_pieces(plain, tokenizer, settings):
    whole = generate(plain, tokenizer, PROMPTS, max_tokens=20, **settings)
    texts, ends = [""] * len(PROMPTS), [None] * len(PROMPTS)
    for piece in stream(plain, tokenizer, PROMPTS, max_tokens=20, **settings):
        assert ends[piece.row] is None
        texts[piece.row] += piece.text
        ends[piece.row] = piece.finish
    assert texts == [each.text for each in whole]
    assert ends == [each.finish for each in whole]


def test_a_stop_string_ends_the_text_before_it(plain, tokenizer):
    (whole,) = generate(plain, tokenizer, ["hello"], max_tokens=30, temperature=0)
    stop = whole.text[5:8]
    (found,) = generate(plain, tokenizer, ["hello"], max_tokens=30, temperature=0, stop=[stop])
    assert found.finish == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert len(found.tokens) < 30


def test_finishes_by_length_and_by_context(plain, tokenizer):
    (found,) = generate(plain, tokenizer, ["hello"], max_tokens=3, temperature=0)
    assert (found.finish, len(found.tokens)) == ("length", 3)
    for found in generate(plain, tokenizer, PROMPTS, max_tokens=None, seed=3):
        assert found.finish in ("context", "end")
        assert found.prompt_tokens + len(found.tokens) <= 128
        assert found.finish == "end" or found.prompt_tokens + len(found.tokens) == 128


def test_ends_where_the_model_says_so(plain, tokenizer):
    """A model whose end token wins always writes nothing, and its neighbour in the batch goes on."""
    sure = tiny(tokenizer.vocabulary_size, head_bias=True)
    with torch.no_grad():
        sure.head.bias.zero_()
        sure.head.bias[tokenizer.end] = 1e4
    assert [(each.text, each.tokens, each.finish) for each in generate(sure, tokenizer, ["a", "bc"])] == [("", [tokenizer.end], "end")] * 2


def test_log_probabilities_are_the_models(plain, tokenizer):
    found = generate(plain, tokenizer, ["the cat", "a"], max_tokens=12, scores=True, **SAMPLED)
    for each in found:
        read = [tokenizer.begin, *tokenizer.encode(each.prompt)]
        with torch.no_grad():
            table = plain(torch.tensor([read + each.tokens])).log_softmax(-1)[0, len(read) - 1 : -1]
        wanted = table.gather(-1, torch.tensor(each.tokens)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(each.log_probabilities), wanted, atol=1e-4)


def test_prompts_as_tokens_are_read_as_they_are(plain, tokenizer):
    tokens = [tokenizer.begin, *tokenizer.encode("the cat")]
    given, text = generate(plain, tokenizer, [tokens], max_tokens=8, seed=4), generate(plain, tokenizer, ["the cat"], max_tokens=8, seed=4)
    assert given[0].tokens == text[0].tokens
    with pytest.raises(BessemerError, match="no token 99999") as caught:
        generate(plain, tokenizer, [[3], [99999]])
    assert caught.value.key == "prompts[1]"


def test_tokens_beyond_the_tokenizers_are_never_written(tokenizer):
    padded = tiny(tokenizer.vocabulary_size + 60, head_bias=True)
    with torch.no_grad():
        padded.head.bias.zero_()
        padded.head.bias[tokenizer.vocabulary_size :] = 100.0
    for temperature in (0.0, 1.0):
        assert max(generate(padded, tokenizer, ["a"], max_tokens=10, temperature=temperature)[0].tokens) < tokenizer.vocabulary_size


def test_the_model_is_left_as_it_was(tokenizer):
    model = tiny(tokenizer.vocabulary_size).train()
    generate(model, tokenizer, ["a"], max_tokens=2)
    assert all(module.training for module in model.modules())


def test_an_empty_prompt_begins_a_document_unless_nothing_begins_it(plain, tokenizer):
    assert generate(plain, tokenizer, [""], max_tokens=4)[0].prompt_tokens == 1
    with pytest.raises(BessemerError, match="prompt is empty") as caught:
        generate(plain, tokenizer, ["a", ""], max_tokens=4, begin=False)
    assert caught.value.key == "prompts[1]"


def test_a_prompt_longer_than_the_context_is_refused_or_trimmed(plain, tokenizer):
    with pytest.raises(BessemerError, match="200 tokens, and the model's context of 128") as caught:
        generate(plain, tokenizer, ["x" * 200])
    assert caught.value.key == "prompts[0]"
    (found,) = generate(plain, tokenizer, ["y" * 100 + "x" * 100], max_tokens=10, temperature=0, trim=True)
    assert found.prompt_tokens == 118
    tail = [tokenizer.begin, *tokenizer.encode("y" * 100 + "x" * 100)[-117:]]
    assert found.tokens == generate(plain, tokenizer, [tail], max_tokens=10, temperature=0)[0].tokens


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"temperature": -1.0}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_p": 0.0}, "top_p"),
        ({"stop": [""]}, "stop"), ({"rows": 0}, "rows"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(plain, tokenizer, wrong, key):
    with pytest.raises(BessemerError) as caught:
        generate(plain, tokenizer, ["a"], **wrong)
    assert caught.value.key == key


def test_settings_are_checked_when_a_stream_is_asked_for(plain, tokenizer):
    with pytest.raises(BessemerError, match="out of range"):
        stream(plain, tokenizer, ["a"], temperature=-1.0)


def test_one_string_for_prompts_is_refused(plain, tokenizer):
    with pytest.raises(BessemerError, match="list"):
        generate(plain, tokenizer, "hello")


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    with pytest.raises(BessemerError, match=f"{tokenizer.vocabulary_size} tokens and the model 100"):
        generate(tiny(100), tokenizer, ["a"])
