"""A model of ours as lm-eval's harness wants one."""

from __future__ import annotations

from typing import Any

from bessemer.core.errors import BessemerError
from bessemer.evaluate.likelihood import likelihoods, whole_likelihoods
from bessemer.evaluate.subject import Subject
from bessemer.serve.generate import generate

KNOWN = {"until", "max_gen_toks", "max_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "do_sample"}


def harness_model(subject: Subject, *, rows: int = 16, max_tokens: int = 256) -> Any:
    """The subject as an `lm_eval.api.model.LM`.

    Args:
        subject: the model under evaluation.
        rows: requests scored or written at once.
        max_tokens: the most tokens written where a task sets no limit.
    """
    from lm_eval.api.model import LM

    made = type("HarnessModel", (Answers, LM), {})()
    made.subject, made.rows, made.max_tokens = subject, rows, max_tokens
    return made


class Answers:
    """Answers the harness's three kinds of request; each request's `args` are what the harness documents."""

    subject: Subject
    rows: int
    max_tokens: int

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of each (context, continuation)."""
        found = likelihoods(self.subject, [each.args for each in requests], rows=self.rows)
        return [(each.log_probability, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-probability of each text, every token once."""
        return [each.log_probability for each in whole_likelihoods(self.subject, [each.args[0] for each in requests], rows=self.rows)]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text written after each context, up to one of the strings it is to end at.

        Raises:
            BessemerError: a task asks for a setting we don't have.
        """
        texts: dict[int, str] = {}
        for settings, places in _alike(requests):
            options = _options(settings, self.max_tokens)
            prompts = [requests[place].args[0] for place in places]
            written = generate(self.subject.model, self.subject.tokenizer, prompts, rows=self.rows, seed=self.subject.seed, trim=True, **options)
            texts |= {place: each.text for place, each in zip(places, written, strict=True)}
        return [texts[place] for place in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.subject.tokenizer.fingerprint


def _alike(requests: list[Any]) -> list[tuple[dict[str, Any], list[int]]]:
    """Requests with equal settings together."""
    groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for place, request in enumerate(requests):
        settings = dict(request.args[1])
        groups.setdefault(repr(sorted(settings.items(), key=str)), (settings, []))[1].append(place)
    return list(groups.values())


def _options(settings: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """The harness's names for what `generate` takes."""
    unknown = sorted(settings.keys() - KNOWN)
    if unknown:
        raise BessemerError(
            f"the task asks to write with '{unknown[0]}', which there is not", key="generation_kwargs", mend=f"known are {', '.join(sorted(KNOWN))}"
        )
    until = settings.get("until") or []
    sampled = settings.get("do_sample", float(settings.get("temperature") or 0) > 0)
    limits = [settings[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in settings]
    return {
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
        "max_tokens": int(limits[0]) if limits else max_tokens,
        "temperature": float(settings.get("temperature") or 1.0) if sampled else 0.0,
        "top_k": int(settings.get("top_k") or 0),
        "top_p": float(settings.get("top_p") or 1.0),
    }
