"""Small corpora and runs for tests, made from nothing but a seed."""

from pathlib import Path

from bessemer.core import rng
from bessemer.data.corpus import write_corpus
from bessemer.data.document import Document

WORDS = ["".join(chr(97 + (i * 7 + j * j * 3 + i // 3) % 26) for j in range(2 + i % 7)) for i in range(160)]


def documents(count: int = 120, seed: int = 0):
    """Texts of two domains with some structure to learn: words follow one another by a fixed rule, with noise."""
    for number in range(count):
        draw = rng.numpy_generator(seed, "document", number)
        size = int(draw.integers(8, 160))
        word = int(draw.integers(len(WORDS)))
        words = []
        for _ in range(size):
            words.append(WORDS[word])
            word = (word * 5 + 3) % len(WORDS) if draw.random() < 0.8 else int(draw.integers(len(WORDS)))
        text = " ".join(words) + "." if number % 2 else "def " + "_".join(words[:6]) + "():\n    return " + " + ".join(words)
        yield Document(text, "made", "prose" if number % 2 else "code", f"made-{number}", {})


def corpus(folder: Path, count: int = 120, seed: int = 0):
    folder.mkdir(parents=True, exist_ok=True)
    return write_corpus(folder, documents(count, seed))


def recipe(corpus_folder: Path, **train) -> str:
    """A recipe file's text: tokenizer, tokens and a very small model on a corpus that stands already."""
    model = '{ name = "decoder", depth = 2, width = 32, heads = 2, ffn = 64 }'
    given = {"model": model, "steps": 40, "batch": 4, "length": 32, "compile": False, "precision": '"float32"'} | train
    lines = "\n".join(f"{key} = {str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items())
    return f"""
name = "small"
seed = 3
[[stage]]
do = "train_tokenizer"
inputs = {{ corpus = "{corpus_folder}" }}
vocabulary = 400
[[stage]]
do = "tokenize"
inputs = {{ corpus = "{corpus_folder}" }}
held_out = 0.1
processes = 1
[[stage]]
do = "train"
{lines}
"""
