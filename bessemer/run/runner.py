"""Runs a recipe: its stages in order, each artifact made once and made again only when what it rests on has changed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bessemer.core import files
from bessemer.core.artifact import MANIFEST, Artifact, seal
from bessemer.core.errors import ArtifactError
from bessemer.core.recipe import Recipe, Stage
from bessemer.core.work import Stopped, Work
from bessemer.run import crew, dry_run, keys, launch, observe, toml, wiring
from bessemer.run import folder as places
from bessemer.run import order as orders
from bessemer.run.energy import Meter

RECIPE, AGAIN = "recipe.json", "recipe.toml"


@dataclass
class Result:
    """What a run has made.

    Attributes:
        folder: the run's folder.
        artifacts: stage name -> its artifact.
        made: the stages done in this run; the others' artifacts were there and still right.
        seconds: how long this run took.
    """

    folder: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        stages = {
            name: {
                "kind": a.manifest["kind"],
                "folder": str(a.folder),
                "hash": a.hash,
                "made": name in self.made,
                "seconds": a.manifest["seconds"],
                "info": a.info,
            }
            for name, a in self.artifacts.items()
        }
        return {"folder": str(self.folder), "seconds": round(self.seconds, 3), "stages": stages}


class Switch:
    """Turns the first Ctrl-C or SIGTERM into a request to stop, and the second into an end at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread may take signals
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        if self.asked:
            _end_at_once()
        self.asked = True
        print("\nstopping where the work can be continued; once more stops at once", file=sys.stderr, flush=True)


def run(
    recipe: Recipe,
    out: Path,
    *,
    smoke: bool = False,
    watch: observe.Watch | None = None,
    store: Path | None = None,
    last: str | None = None,
    what: str = "run",
) -> Result:
    """Does what a recipe says, in `out`.

    Args:
        out: the run's folder, made if need be; an earlier run of the same recipe there is continued.
        smoke: every stage at its smallest.
        watch: hears what happens.
        store: a folder that runs share, where each artifact stands once as STAGE-KEY instead of in `out`.
        last: do only what this stage rests on, and it.
        what: what the folder is for; another use of it is refused.

    Raises:
        BessemerError: something given to us is wrong; what was finished stays.
        Stopped: it was asked to stop; the same call goes on.
    """
    watch, start, switch = watch or observe.Watch(), time.perf_counter(), Switch()
    steps = wiring.plan(recipe)
    if last is not None:
        steps = wiring.needed(steps, last)
    for step in steps:
        if step.stage.choice.name == "train":
            dry_run.rehearse(recipe, step, smoke)
    with places.claim(out, {"recipe": recipe.name, "smoke": smoke, "what": what}), files.disk_errors(out):
        files.write_json(out / RECIPE, recipe.plain() | {"file": str(recipe.file) if recipe.file else None, "about": recipe.about})
        files.write(out / AGAIN, toml.recipe(recipe.plain() | {"about": recipe.about}))
        log = observe.Log(out / observe.LOG)
        watch = observe.Both(watch, log)
        room = Room(recipe, out, store, smoke, watch, switch)
        try:
            with switch.listen():
                for step in steps:
                    room.do(step)
        except Stopped:
            log.note(room.at, "stopped; the same command goes on from here")
            raise
        except Exception as error:
            log.note(room.at, f"failed: {error}")
            raise
        finally:
            watch.close()
    room.result.seconds = time.perf_counter() - start
    return room.result


class Room:
    """One run in progress."""

    def __init__(self, recipe: Recipe, out: Path, store: Path | None, smoke: bool, watch: observe.Watch, switch: Switch) -> None:
        self.recipe, self.out, self.store, self.smoke, self.watch, self.switch = recipe, out, store, smoke, watch, switch
        self.result = Result(out)
        self.at = ""

    def do(self, step: wiring.Step) -> None:
        """Does one step, or finds it done."""
        stage, self.at = step.stage, step.stage.name
        if self.switch.asked:
            raise Stopped
        given, parents = self._gather(step)
        plain = stage.plain()
        key = keys.stage_key(stage.choice, plain, self._seed(stage), self.smoke, [f"{name}={parent}" for name, parent in parents.items()])
        place = self.store / f"{stage.name}-{key[:12]}" if self.store else self.out / stage.name
        done = self._is_done(place, key)
        if done:
            self.watch.reuse(stage.name)
        else:
            self._make(step, given, parents, plain, key, place)
            self.result.made.append(stage.name)
        self.result.artifacts[stage.name] = step.makes.open(place, verify=done)  # what was just sealed needs no second reading

    def _gather(self, step: wiring.Step) -> tuple[list[Any], dict[str, str]]:
        """The artifacts a step takes, in order, and their hashes by where they come from."""
        given: list[Any] = []
        parents: dict[str, str] = {}
        for wire in step.wires:
            found = [self.result.artifacts[name] for name in wire.stages]
            if wire.folder is not None:
                found = [wire.wanted.open(wire.folder)]
            names = wire.stages or ([str(wire.folder)] if found else [])
            parents |= {name: artifact.hash for name, artifact in zip(names, found, strict=True)}
            given.append(found if wire.many else found[0] if found else None)
        return given, parents

    def _call(self, step: wiring.Step, work: Work, given: list[Any]) -> None:
        """Does the work; what a stage finds wrong with its options is told with the recipe's file and the stage's name."""
        with wiring.named(self.recipe, work.name):
            if orders.ranks_of(step.stage.choice) > 1:
                (crew.lead if crew.launched() else launch.stage)(step.stage.choice, work, given)
            else:
                step.stage.choice(work, *given)

    def _seed(self, stage: Stage) -> int:
        return self.recipe.seed if stage.seed is None else stage.seed

    def _is_done(self, place: Path, key: str) -> bool:
        manifest = place / MANIFEST
        if not manifest.is_file():
            return False
        content = files.read_json(manifest)
        return isinstance(content, dict) and content.get("key") == key

    def _make(self, step: wiring.Step, given: list[Any], parents: dict[str, str], plain: dict[str, Any], key: str, place: Path) -> None:
        if place.exists() and not (place / MANIFEST).exists():
            problem, mend = "stands where the finished stage belongs and is no artifact", "move it away and give the same command again"
            raise ArtifactError(problem, file=place, mend=mend)
        name, unfinished = step.stage.name, places.partial(place, key)
        start, continued = time.perf_counter(), unfinished.exists()
        unfinished.mkdir(parents=True, exist_ok=True)
        self.watch.begin(name)
        if not self._is_done(unfinished, key):  # it is where a kill came between sealing and moving it
            if continued:
                self.watch.note(name, "goes on from where it stopped")
            meter, work = Meter(), self._work(step.stage, unfinished)
            self._call(step, work, given)
            energy = meter.read()
            info = work.info | {"energy": {"joules": round(energy.joules, 1), "measured": energy.measured, "how": energy.how}}
            made_from = {"do": step.stage.choice.name, **plain}
            seal(unfinished, step.makes.kind, recipe=made_from, parents=parents, info=info, seconds=time.perf_counter() - start, key=key)
        files.replace_folder(unfinished, place)
        for stale in place.parent.glob(f".{place.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)  # left from other options of this stage
        self.watch.end(name, time.perf_counter() - start)

    def _work(self, stage: Stage, out: Path) -> Work:
        name = stage.name
        work = Work(out, self._seed(stage), name, self.smoke, {}, self.out, self.recipe.plain(), lambda: self.switch.asked)
        work.on_progress = lambda done, total, unit, figures: self.watch.progress(name, done, total, unit, figures)
        work.on_note = lambda text: self.watch.note(name, text)
        return work


def _end_at_once() -> None:
    """Ends this process and its workers without waiting for anything; what is on disk can be continued from."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue
    sys.stderr.write("\x1b[?25h")  # a live display hides the cursor
    sys.stderr.flush()
    os._exit(130)
