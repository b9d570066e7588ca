"""The stage that has a model write."""

from __future__ import annotations

import time

from bessemer.core import device
from bessemer.core.errors import RecipeError
from bessemer.core.work import Work
from bessemer.data.tokenizer import Tokenizer
from bessemer.models.package import Model
from bessemer.serve.generate import generate
from bessemer.serve.samples import Samples, write_samples


def sample(
    work: Work,
    model: Model,
    tokenizer: Tokenizer,
    *,
    prompts: list[str] = ["def ", "class ", "import ", "The "],
    count: int = 1,
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: list[str] = [],
) -> Samples:
    """Continues prompts, keyed by the recipe's seed.

    Args:
        prompts: texts to continue; an empty one has the model begin a document.
        count: texts for each prompt.
        max_tokens: the most tokens of each text.
        temperature, top_k, top_p, min_p, repetition_penalty: how tokens are picked (serve/sampler.py); temperature 0 takes
            the most likely one.
        stop: strings that end a text.

    Raises:
        BessemerError: a setting is out of range, a prompt is too long, the tokenizer is not the model's.
    """
    if not prompts or count < 1:
        raise RecipeError(
            "there is nothing to write", key=f"{work.name}.{'count' if prompts else 'prompts'}", mend="give at least one prompt and a count of 1"
        )
    settings = {
        "max_tokens": min(max_tokens, 16) if work.smoke else max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "min_p": min_p, "repetition_penalty": repetition_penalty, "stop": stop,
    }  # fmt: skip
    built = model.build().to(device.device())
    start = time.perf_counter()
    written = generate(built, tokenizer, [prompt for prompt in prompts for _ in range(count)], seed=work.seed, **settings)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    write_samples(work.out, written, settings | {"seed": work.seed})
    tokens = sum(len(each.tokens) for each in written)
    ends: dict[str, int] = {}
    for each in written:
        ends[each.finish] = ends.get(each.finish, 0) + 1
    work.progress(len(written), len(written), "texts")
    work.info |= {"texts": len(written), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1), "ended_by": ends}
    return Samples(work.out, {})
