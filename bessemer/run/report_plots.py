"""The pictures of a report, each a small matplotlib figure."""

from __future__ import annotations

import io
import itertools
import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bessemer.run.observe import duration, number
from bessemer.run.report_data import Curve, RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#be123c", "#a16207", "#475569"]
INK, FAINT, GRID = "#1e293b", "#94a3b8", "#e2e8f0"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": "#475569",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 160,
    "savefig.facecolor": "white",
}


def training(curve: Curve) -> dict[str, bytes]:
    """Name -> PNG of every figure the metrics allow."""
    figures: dict[str, Callable[[Curve, Axes], bool]] = {
        "loss": _loss,
        "held_out": _held_out,
        "learning_rate": _learning_rate,
        "gradient_norm": _gradient_norm,
        "noise_scale": _noise_scale,
        "speed": _speed,
        "memory": _memory,
        "energy": _energy,
    }
    made = {name: _draw(partial(paint, curve)) for name, paint in figures.items()}
    if curve.timed:
        made["time"] = _draw(lambda axes: _bars(axes, "where the training's time went", curve.timed, duration), height=_tall(curve.timed))
    return {name: picture for name, picture in made.items() if picture}


def stages(data: RunData) -> bytes | None:
    """How long each stage took."""
    spent = {stage.name: stage.seconds for stage in data.stages if stage.manifest}
    return _draw(lambda axes: _bars(axes, "where the run's time went", spent, duration), height=_tall(spent)) if spent else None


def counts(title: str, values: dict[str, float]) -> bytes | None:
    """A horizontal bar for each count, largest first."""
    kept = dict(sorted(values.items(), key=lambda pair: -pair[1])[:16])
    return _draw(lambda axes: _bars(axes, title, kept, number), height=_tall(kept)) if kept else None


def against(title: str, across: str, lines: dict[str, list[tuple[list[float], list[float]]]], log: bool = False) -> bytes | None:
    """Named groups of curves, one colour a group, in one picture: how variants compare."""

    def paint(axes: Axes) -> bool:
        for place, (name, group) in enumerate(lines.items()):
            for first, (x, y) in enumerate(group):
                axes.plot(x, y, color=COLOURS[place % len(COLOURS)], lw=1.6, alpha=0.9, label=name if first == 0 else None)
        axes.set(title=title, xlabel=across)
        if log:
            axes.set_yscale("log")
        _axis_of_counts(axes)
        axes.legend()
        return any(group for group in lines.values())

    return _draw(paint, width=6.4, height=4.0)


def points(title: str, across: str, found: dict[str, tuple[float, float]], joined: list[str]) -> bytes | None:
    """Named points, with a line through some of them."""

    def paint(axes: Axes) -> bool:
        for place, (name, (x, y)) in enumerate(found.items()):
            axes.scatter([x], [y], color=COLOURS[place % len(COLOURS)], s=28, zorder=3)
            axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.plot([found[name][0] for name in joined], [found[name][1] for name in joined], color="0.6", lw=1.2, zorder=1)
        axes.set(title=title, xlabel=across)
        return bool(found)

    return _draw(paint, width=6.4, height=4.0)


def smooth(values: list[float], share: float = 0.02) -> list[float]:
    """An exponential average over about `share` of the values, unbiased at the beginning."""
    decay = 1 - 1 / max(1.0, share * len(values))
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        out.append(total / weight)
    return out


def _loss(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("loss")
    axes.plot(x, y, color=COLOURS[0], lw=0.8, alpha=0.3)
    axes.plot(x, smooth(y), color=COLOURS[0], lw=1.8, label="loss")
    terms = sorted({name for line in curve.steps for name in line.get("terms", {})})
    for place, name in enumerate(terms if len(terms) > 1 else [], start=1):
        pairs = [(line["tokens"], line["terms"][name]) for line in curve.steps if isinstance(line.get("terms", {}).get(name), float)]
        axes.plot([p[0] for p in pairs], smooth([p[1] for p in pairs]), color=COLOURS[place % len(COLOURS)], lw=1.2, label=name)
    where = {line["step"]: line.get("tokens", line["step"]) for line in curve.steps}
    skipped = [where[event["step"]] for event in curve.events if event["step"] in where]
    if skipped:
        axes.plot(skipped, [max(y)] * len(skipped), "v", color=COLOURS[5], ms=5, label="skipped by the guard")
    if len(axes.get_lines()) > 2:
        axes.legend()
    if y:
        low, high = min(y), sorted(y)[int(0.98 * (len(y) - 1))]
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.25 * (high - low) + 1e-9)
    axes.set(title="training loss (nats a token)", xlabel="tokens")
    return bool(y)


def _held_out(curve: Curve, axes: Axes) -> bool:
    found = curve.held_out()
    for place, (domain, (x, y)) in enumerate(sorted(found.items())):
        axes.plot(x, y, "o-", color=COLOURS[place % len(COLOURS)], lw=1.8, ms=3.5, label=domain)
        axes.annotate(f" {y[-1]:.3f}", (x[-1], y[-1]), color=COLOURS[place % len(COLOURS)], fontsize=8.5, va="center")
    axes.set(title="held-out bits per byte", xlabel="tokens")
    axes.margins(x=0.12)
    if found:
        axes.legend()
    return bool(found)


def _learning_rate(curve: Curve, axes: Axes) -> bool:
    rates: dict[str, list[tuple[float, float]]] = {}
    for line in curve.steps:
        rate = line.get("learning_rate")
        for name, value in (rate if isinstance(rate, dict) else {"": rate}).items():
            if isinstance(value, int | float):
                rates.setdefault(name, []).append((line.get("tokens", line["step"]), value))
    for place, (name, pairs) in enumerate(rates.items()):
        axes.plot([p[0] for p in pairs], [p[1] for p in pairs], color=COLOURS[place % len(COLOURS)], lw=1.8, label=name)
    if len(rates) > 1:
        axes.legend()
    axes.set(title="learning rate", xlabel="tokens", ylim=(0, None))
    return bool(rates)


def _gradient_norm(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("gradient_norm")
    axes.plot(x, y, color=COLOURS[3], lw=0.8, alpha=0.35)
    axes.plot(x, smooth(y), color=COLOURS[3], lw=1.8)
    axes.set(title="gradient norm, before clipping", xlabel="tokens")
    if y and min(y) > 0 and max(y) / min(y) > 20:
        axes.set_yscale("log")
    return bool(y)


def _noise_scale(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("noise_scale")
    lines = [{"step": 0, "tokens": 0}, *(line for line in curve.steps if "tokens" in line)]
    batches = [(b["tokens"] - a["tokens"]) / max(1, b["step"] - a["step"]) for a, b in itertools.pairwise(lines)]
    axes.plot([line["tokens"] for line in lines[1:]], batches, color=COLOURS[1], lw=1.2, label="a batch's tokens")
    axes.plot(x, y, color=COLOURS[3], lw=1.8, label="noise scale of the gradient")
    axes.set(title="tokens in a batch, and how many are worth their while", xlabel="tokens", yscale="log")
    axes.legend()
    return bool(y)


def _speed(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("tokens_per_second")
    axes.plot(x, y, color=COLOURS[2], lw=0.8, alpha=0.35)
    axes.plot(x, smooth(y), color=COLOURS[2], lw=1.8)
    axes.set(title="tokens a second", xlabel="tokens", ylim=(0, 1.15 * max(y) if y else None))
    _, mfu = curve.column("mfu")
    if y and mfu and y[-1] and mfu[-1]:
        ratio = 100 * mfu[-1] / y[-1]  # flops a token over the peak: the same for every step
        right = axes.secondary_yaxis("right", functions=(partial(operator.mul, ratio), partial(operator.mul, 1 / ratio)))
        right.set_ylabel("% of the measured matrix peak (MFU)", fontsize=8)
        right.spines["right"].set_visible(False)
    return bool(y)


def _memory(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("memory_bytes")
    axes.fill_between(x, [v / 1e6 for v in y], color=COLOURS[4], alpha=0.18, lw=0)
    axes.plot(x, [v / 1e6 for v in y], color=COLOURS[4], lw=1.6)
    axes.set(title="memory in use (MB)", xlabel="tokens", ylim=(0, None))
    return bool(y)


def _energy(curve: Curve, axes: Axes) -> bool:
    x, y = curve.column("energy_joules")
    measured = bool(curve.steps and curve.steps[-1].get("energy_measured"))
    axes.plot(x, [v / 1e3 for v in y], color=COLOURS[6], lw=1.8, ls="-" if measured else "--")
    axes.set(title=f"energy (kJ, {'measured' if measured else 'estimated'})", xlabel="tokens", ylim=(0, None))
    return bool(y)


def _bars(axes: Axes, title: str, values: dict[str, float], say: Callable[[float], str]) -> bool:
    names, sizes = list(values), list(values.values())
    total = sum(sizes) or 1.0
    axes.barh(names, sizes, color=COLOURS[0], alpha=0.85, height=0.62)
    for place, size in enumerate(sizes):
        axes.annotate(f" {say(size)}  ({100 * size / total:.0f}%)", (size, place), va="center", fontsize=8.5, color="#475569")
    axes.invert_yaxis()
    axes.margins(x=0.28)
    axes.set(title=title, xticks=[])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    return True


def _tall(values: dict[str, Any]) -> float:
    return 0.7 + 0.28 * max(2, len(values))


def _axis_of_counts(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: _short(value)))


def _short(value: float) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _draw(paint: Callable[[Axes], bool], width: float = 5.2, height: float = 2.9) -> bytes | None:
    """A PNG of what `paint` draws, or None if it says there was nothing to draw."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure: Figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if not paint(axes):
            return None
        if axes.get_xlabel() == "tokens":
            _axis_of_counts(axes)
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()
