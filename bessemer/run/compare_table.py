"""What trainings came to, as a table: ends, intervals, what a target took, and whether a difference may be chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean, median, stdev
from typing import Any

from bessemer.run.compare_options import Budget
from bessemer.run.report_data import Curve


@dataclass
class Variant:
    """One setting of the varied keys, with its runs, one for each seed.

    Attributes:
        settings: key -> value.
        tuned: key -> value found by tuning.
        edge: tuned keys whose best value was the first or last that was tried.
        curves: the metrics of each seed's training.
        infos: what each manifest says of its training.
        folders: where each seed's model stands.
        failed: why trainings of this variant could not be finished.
    """

    settings: dict[str, Any]
    tuned: dict[str, Any] = field(default_factory=dict)
    edge: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "as written"


PLAIN = ("final", "best", "loss", "tokens_per_second", "tokens", "steps", "seconds", "flops", "peak_memory", "state_bytes")


def rows(variants: list[Variant], target: float | None, budget: Budget) -> list[dict[str, Any]]:
    """A row for each variant, best first, and how it stands to the best one; those with failed seeds come after those without.

    Args:
        target: held-out bits per byte; None: what the first variant reached at its end with every seed that got there.
    """
    found = [row(variant) for variant in variants]
    if target is None:
        target = max(found[0]["final_by_seed"], default=None)
    for variant, each in zip(variants, found, strict=True):
        each |= to_target(variant, target)
        each["over"] = bool(budget.memory and each["peak_memory"] and each["peak_memory"] > budget.memory)
    ranked = sorted(found, key=lambda each: (each["final"] is None, bool(each["failed"]), each["over"], each["final"] or 0.0))
    for each in ranked:
        verdicts = [verdict(ranked[0], each)] if each is not ranked[0] else []
        verdicts += [f"takes more than {budget.memory / 1e6:,.0f} MB"] if each["over"] and budget.memory else []
        verdicts += [f"{len(each['failed'])} of {each['seeds']} failed: {each['failed'][0]}"] if each["failed"] else []
        verdicts += [f"{', '.join(each['edge'])} best at the edge of what was tried"] if each["edge"] else []
        each["verdict"] = "; ".join(verdicts)
    return ranked


def row(variant: Variant) -> dict[str, Any]:
    """One variant's figures, averaged over the seeds that didn't fail.

    `final` is the last held-out bits per byte, the mean over domains, `final_by_seed` its values, `interval` half the width of its 95%
    interval over seeds (Student's t); without held-out measures it is the training loss over the last twentieth.
    """
    ends = [ending(curve, info) for curve, info in zip(variant.curves, variant.infos, strict=True)]
    finals = [end["final"] for end in ends if end["final"] is not None]
    out: dict[str, Any] = {"name": variant.name, "settings": variant.settings, "tuned": variant.tuned, "edge": variant.edge}
    for key in PLAIN:
        values = [value for end in ends if (value := end[key]) is not None]
        out[key] = mean(values) if values else None
    out["seeds"] = len(variant.curves) + len(variant.failed)
    more = {"interval": half_width(finals), "final_by_seed": finals, "folders": variant.folders, "failed": variant.failed}
    parts = [curve.parts() for curve in variant.curves]
    out["parts"] = {name: mean(each[name] for each in parts) for name in (parts[0] if parts else ()) if all(name in each for each in parts)}
    out["law"] = variant.curves[0].law() if variant.curves else {}
    return out | more | {"spread": stdev(finals) if len(finals) > 1 else None}


def ending(curve: Curve, info: dict[str, Any]) -> dict[str, float | None]:
    """Where one training came to."""
    losses = curve.column("loss")[1]
    tail = losses[-max(1, len(losses) // 20) :]
    loss = mean(tail) if tail else None
    kept = [score for _, score in curve.scores()]
    rates, memory = curve.column("tokens_per_second")[1], curve.column("memory_bytes")[1]
    last = curve.steps[-1] if curve.steps else {}
    return {
        "final": kept[-1] if kept else loss,
        "best": min(kept) if kept else loss,
        "loss": loss,
        "tokens_per_second": median(rates) if rates else None,
        "tokens": last.get("tokens"),
        "steps": last.get("step"),
        "seconds": last.get("seconds"),
        "flops": last.get("flops"),
        "peak_memory": max(memory) if memory else None,
        "state_bytes": info.get("optimizer_state_bytes"),
    }


def to_target(variant: Variant, target: float | None) -> dict[str, Any]:
    """Steps, seconds, tokens and FLOPs until the first measure at or below the target: medians over seeds (Dahl et al. 2023, AlgoPerf).

    A seed that never gets there, or failed, counts as longer than any; where that is half of them or more there is no figure.
    """
    reached: list[dict[str, Any] | None] = []
    if target is not None:
        reached += [_reached(curve, target) for curve in variant.curves]
        reached += [None] * len(variant.failed)
    out: dict[str, Any] = {"target": target, "reached": sum(found is not None for found in reached)}
    for key in ("steps", "tokens", "seconds", "flops"):
        values = [float("inf") if found is None else found[key] for found in reached]
        kept = [value for value in values if value is not None]
        middle = median(kept) if kept and len(kept) == len(values) else float("inf")
        out[f"{key}_to_target"] = middle if middle < float("inf") else None
    return out


def _reached(curve: Curve, target: float) -> dict[str, Any] | None:
    at = {line["step"]: line for line in curve.steps}
    for line, score in curve.scores():
        if score <= target:
            step = at.get(line["step"], {})
            tokens = line.get("tokens", step.get("tokens"))
            return {"steps": line["step"], "tokens": tokens, "seconds": line.get("seconds", step.get("seconds")), "flops": step.get("flops")}
    return None


def half_width(values: list[float]) -> float | None:
    """Half the 95% interval of a mean."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def verdict(best: dict[str, Any], other: dict[str, Any]) -> str:
    """How a variant stands to the best: the difference, and whether chance alone may make it.

    With more seeds than one it is Welch's unequal-variances t-test (Welch 1947) at 5%; with one seed nothing is known of chance.
    """
    if best["final"] is None or other["final"] is None:
        return "no result"
    difference = f"{other['final'] - best['final']:+.4f}"
    a, b = best["final_by_seed"], other["final_by_seed"]
    if len(a) < 2 or len(b) < 2:
        return f"{difference} (one seed: chance unknown)"
    from scipy.stats import ttest_ind

    if stdev(a) == stdev(b) == 0:
        return difference if a != b else f"{difference} (the same)"
    p = float(ttest_ind(a, b, equal_var=False).pvalue)
    return f"{difference} (within noise, p = {p:.2f})" if p > 0.05 else f"{difference} (p = {p:.2g})"
