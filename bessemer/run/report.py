"""The report of a run: what people look at, on one self-contained page, with the same pictures as files beside it."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

from bessemer.core import files
from bessemer.run import report_page as html
from bessemer.run import report_plots, toml
from bessemer.run.observe import duration, number
from bessemer.run.report_data import Curve, RunData, StageData, gather
from bessemer.train.hooks.conflict import absent, cells

PAGE = "report.html"


def write(folder: Path, out: Path) -> Path:
    """Writes `report.html` and its pictures into `out`.

    Args:
        folder: a run's folder; the run may still be going.
        out: where to write; made if need be.

    Returns:
        the page.

    Raises:
        ArtifactError: `folder` is no run's.
        BessemerError: `out` can't be written.
    """
    data = gather(folder)
    pictures: dict[str, dict[str, bytes]] = {curve.stage: report_plots.training(curve) for curve in data.curves}
    stages = report_plots.stages(data)
    if stages and data.curves:
        pictures[data.curves[0].stage]["stages"] = stages
    for stage, made in pictures.items():
        for name, picture in made.items():
            files.write(out / f"{stage + '-' if len(data.curves) > 1 else ''}{name}.png", picture)
    page = html.page(f"{data.recipe['name']} — bessemer", _body(data, pictures))
    files.write(out / PAGE, page)
    return out / PAGE


def summary(data: RunData) -> dict[str, Any]:
    """The figures of the run, for programs."""
    out: dict[str, Any] = {
        "name": data.recipe["name"],
        "folder": str(data.folder),
        "state": _state(data)[1],
        "stages": {s.name: s.state for s in data.stages},
    }
    for curve in data.curves:
        held_out = {domain: ys[-1] for domain, (_, ys) in curve.held_out().items()}
        last = curve.steps[-1] if curve.steps else {}
        out[curve.stage] = {"step": last.get("step"), "tokens": last.get("tokens"), "loss": last.get("loss"), "bits_per_byte": held_out}
    return out


def _body(data: RunData, pictures: dict[str, dict[str, bytes]]) -> list[str]:
    css, state = _state(data)
    about = f"<p>{html.escape(data.recipe['about'])}</p>" if data.recipe.get("about") else ""
    written = time.strftime("%Y-%m-%d %H:%M")
    body = [
        f'<h1>{html.escape(data.recipe["name"])}<span class="badge {css}">{state}</span></h1>{about}<p>{html.escape(data.folder)}, written {written}</p>'
    ]
    body.append(html.tiles(_tiles(data)))
    for curve in data.curves:
        body += _training(curve, pictures.get(curve.stage, {}), len(data.curves) > 1)
    body += [*_evaluation(data), *_samples(data), *_stages(data)]
    body += [
        "<h2>Recipe</h2><p>Everything written out, defaults and worked-out values included.</p>",
        f'<div class="card"><pre>{html.escape(toml.recipe(data.recipe))}</pre></div>',
    ]
    body += _provenance(data)
    return body


def _state(data: RunData) -> tuple[str, str]:
    if data.done:
        return "done", "finished"
    if data.going:
        return "going", "going on"
    return "begun", "unfinished; the same command goes on"


def _tiles(data: RunData) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for curve in data.curves[:1]:
        for domain, (_, ys) in sorted(curve.held_out().items()):
            found.append((f"{ys[-1]:.3f}", f"held-out bits per byte, {domain}"))
        if curve.steps:
            last, rates = curve.steps[-1], curve.column("tokens_per_second")[1]
            found.append((f"{report_plots.smooth(curve.column('loss')[1] or [0.0])[-1]:.3f}", "training loss, nats a token"))
            found.append((number(last.get("tokens", 0)), f"tokens in {number(last['step'])} steps"))
            found += [(number(round(median(rates))), "tokens a second, median")] if rates else []
            found += _tile(curve, "mfu", lambda values: f"{100 * median(values):.0f}%", "of the measured matrix peak (MFU)")
            found += _tile(curve, "noise_scale", lambda values: number(round(values[-1])), "tokens, the noise scale of the gradient at the end")
            found += _tile(curve, "memory_bytes", lambda values: f"{max(values) / 1e6:,.0f} MB", "most memory in use")
    spent = sum(stage.seconds for stage in data.stages)
    energies = [stage.info["energy"] for stage in data.stages if "energy" in stage.info]
    if spent:
        found.append((duration(spent), "for all finished stages"))
    if energies:
        kind = "measured" if all(energy["measured"] for energy in energies) else "estimated"
        found.append((f"{number(round(sum(energy['joules'] for energy in energies) / 3600, 2))} Wh", f"energy, {kind}"))
    return found


def _tile(curve: Curve, name: str, say: Any, label: str) -> list[tuple[str, str]]:
    values = curve.column(name)[1]
    return [(say(values), label)] if values else []


def _training(curve: Curve, pictures: dict[str, bytes], several: bool) -> list[str]:
    body = [f"<h2>Training{f' ({html.escape(curve.stage)})' if several else ''}</h2>", html.pictures(pictures)]
    if not pictures:
        body.append("<p>No step has been logged yet.</p>")
    if curve.conflicts:
        last = curve.conflicts[-1]
        body += [f"<h3>Tasks at step {number(last['step'])}, and the cosines between their gradients</h3>"]
        body += [html.table(*cells(last["conflict"]), numeric=range(1, 99))]
        body += [f"<p>{html.escape(text)}</p>" for text in absent(last["conflict"])]
    if curve.events:
        rows = [(number(e["step"]), e["guard"], e.get("reason", ""), ", ".join(map(str, e.get("samples", [])[:12]))) for e in curve.events[-20:]]
        body += [f"<h3>What the guard did ({len(curve.events)} times)</h3>", html.table(["step", "did", "because", "samples"], rows, numeric=[0])]
    return body


def _evaluation(data: RunData) -> list[str]:
    """The evaluation stages' results, and until there are some the last measures taken while training."""
    body = []
    for stage in data.stages:
        if stage.manifest and stage.manifest["kind"] == "evaluation":
            body += [*_earlier(stage), _figures(stage)]
    if not body:
        for curve in data.curves:
            if curve.evaluations:
                body.append(html.facts(curve.evaluations[-1]["evaluation"]))
    return ["<h2>Evaluation</h2>", *body] if body else []


def _earlier(stage: StageData) -> list[str]:
    return [f"<p>{html.escape(html.words(stage.name))} is of what the run made before; the same command makes it again.</p>"] if stage.stale else []


def _figures(stage: StageData) -> str:
    """A row for each figure, with its 95% interval where the stage wrote them down."""
    file = stage.folder / "evaluation.json" if stage.folder else None
    if file is None or not file.is_file():
        return html.facts({key: value for key, value in stage.info.items() if key != "energy"})
    rows = []
    for task, figures in files.read_json(file)["figures"].items():
        for name, each in figures.items():
            interval = f"{each['low']:.4f} to {each['high']:.4f}" if each["low"] != each["high"] else ""
            rows.append((html.words(task), html.words(name), f"{each['value']:.4f}", interval, number(each["count"]), f"{each['better']} is better"))
    return html.table(["task", "figure", "value", "95% interval", "rests on", ""], rows, numeric=[2, 3, 4])


def _samples(data: RunData) -> list[str]:
    pieces, earlier = [], []
    for stage in data.stages:
        if stage.folder and (stage.folder / "samples.json").is_file():
            content = files.read_json(stage.folder / "samples.json")
            earlier += _earlier(stage)
            pieces += [sample for sample in (content.get("samples", []) if isinstance(content, dict) else content) if isinstance(sample, dict)]
    if not pieces:
        pieces = [dict(line["sample"], at=line["step"]) for curve in data.curves for line in curve.samples[-4:]]
    if not pieces:
        return []
    return ["<h2>Samples</h2>", *earlier, *(_sample(piece) for piece in pieces[:12])]


def _sample(piece: dict[str, Any]) -> str:
    prompt, text = str(piece.get("prompt", "")), str(piece.get("text", ""))
    text = text.removeprefix(prompt)
    at = f"<p>after step {number(piece['at'])}</p>" if "at" in piece else ""
    return f'<div class="card">{at}<pre><span class="prompt">{html.escape(prompt)}</span>{html.escape(text)}</pre></div>'


def _stages(data: RunData) -> list[str]:
    """What each stage recorded: cleaning and deduplication counts, the tokenizer's figures, and the rest."""
    body = ["<h2>Stages</h2>"]
    for stage in data.stages:
        info = {key: value for key, value in stage.info.items() if key != "energy" and not _empty(value)}
        if info and not (stage.manifest and stage.manifest["kind"] == "evaluation"):
            title = stage.name if stage.name == stage.do else f"{stage.name} ({stage.do})"
            body.append(
                f"<details{'' if stage.do == 'train' else ' open'}><summary><b>{html.escape(html.words(title))}</b></summary>{html.facts(info)}</details>"
            )
    return body if len(body) > 1 else []


def _empty(value: Any) -> bool:
    return value is None or value in ({}, [], "")


def _provenance(data: RunData) -> list[str]:
    rows = []
    for stage in data.stages:
        manifest = stage.manifest
        size = sum(entry["bytes"] for entry in manifest["files"].values()) if manifest else 0
        rows.append(
            (
                stage.name,
                manifest["kind"] if manifest else "",
                _short(stage),
                _parents(stage),
                f"{size / 1e6:,.1f} MB" if manifest else "",
                duration(stage.seconds) if manifest and not stage.stale else stage.state,
            )
        )
    body = ["<h2>Artifacts and versions</h2>", html.table(["stage", "kind", "hash", "from", "size", "time"], rows, numeric=[4, 5])]
    versions = data.made_by()
    how = {stage.info["energy"]["how"] for stage in data.stages if "energy" in stage.info}
    body.append(html.table(["", ""], [*versions.items(), *(("energy", text) for text in sorted(how))]))
    return body


def _short(stage: StageData) -> Any:
    return html.Markup(f"<code>{stage.manifest['hash'][:12]}</code>") if stage.manifest else ""


def _parents(stage: StageData) -> Any:
    if not stage.manifest:
        return ""
    return html.Markup(" ".join(f"{html.escape(name)} <code>{value[:8]}</code>" for name, value in stage.manifest["parents"].items()))
