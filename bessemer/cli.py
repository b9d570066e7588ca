"""The command line: each command reads its arguments, hands them to the room that does the work, and says what came of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from bessemer.core.errors import BessemerError, neighbours
from bessemer.run import patient_collector

ABOUT = {
    "run": "all stages of a recipe; Ctrl-C and kill are safe, and the same command resumes",
    "launch": "a recipe as a job for a cluster: a Slurm script or a Kubernetes manifest",
    "compare": "one recipe with keys varied, on the same budget: a table and a plot",
    "generate": "write on from a prompt with a trained model",
    "evaluate": "held-out bits per byte and tasks for a model",
    "export": "a model as a Hugging Face folder",
    "import": "a Hugging Face folder as a model of ours",
    "report": "one page that shows a run, finished or going",
    "methods": "what there is, from which paper, what was measured",
    "doctor": "what this machine has, what will be fast, what is missing and how to get it",
}

DTYPES = ("keep", "float32", "bfloat16", "float16")
SAMPLING: tuple[tuple[str, Any, Any], ...] = (
    ("max-tokens", int, 256), ("temperature", float, 0.8), ("top-k", int, 0), ("top-p", float, 0.95), ("min-p", float, 0.0),
    ("repetition-penalty", float, 1.0), ("seed", int, 0),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 our fault, 2 the input's fault, 130 stopped."""
    argv = sys.argv[1:] if argv is None else argv
    shape = argparse.Namespace(json="--json" in argv, folder=None)
    try:
        status = _dispatch(argv, shape)
        sys.stdout.flush()
        return status
    except BessemerError as error:
        return _fail(shape, 2, error.describe())
    except KeyboardInterrupt:
        return _fail(shape, 130, "stopped before it was done")
    except BrokenPipeError:  # whoever read has gone, as `head` does; what is left to flush at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 130
    except Exception as error:  # ours: kept in a file for whoever mends it
        from bessemer.core.work import Stopped

        if isinstance(error, Stopped):
            return _fail(shape, 130, "stopped; the same command goes on from here")
        file = _write_crash(shape.folder)
        return _fail(shape, 1, f"a fault in bessemer: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (details in {file})")


def _dispatch(argv: list[str], shape: argparse.Namespace) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        _usage()
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("bessemer"))
        return 0
    sys.path.append(os.getcwd())  # where a user's own methods are, for names with a dot
    command = argv[0]
    if command not in ABOUT:
        raise BessemerError(f"there is no command '{command}'", mend=neighbours(command, ABOUT))
    parser = Parser(command)
    with patient_collector():
        return globals()[f"_{command}"](parser, argv[1:], shape)


class Parser(argparse.ArgumentParser):
    """One command's arguments; mistakes become the errors every other mistake becomes."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"bessemer {command}", description=ABOUT[command], allow_abbrev=False)
        self.add_argument("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
        self.add_argument("--quiet", action="store_true", help="no progress")
        self.add_argument("--out", metavar="PATH", help="where to write")

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        wrong = message.rpartition(": ")[2].split()[0] if "unrecognized" in message else ""
        raise BessemerError(f"{self.prog}: {message}", mend=(wrong and neighbours(wrong, known)) or f"{self.prog} --help")

    def read(self, argv: list[str]) -> argparse.Namespace:
        """The arguments, options and positions in any order."""
        return self.parse_intermixed_args(argv)


def _run(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("recipe", help="a TOML file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.model.depth=8")
    parser.add_argument("--smoke", action="store_true", help="every stage at its smallest, under a minute")
    parser.add_argument("--dry-run", action="store_true", help="start nothing; tell what each rank would hold and send")
    parser.add_argument("--ranks", type=int, metavar="N", help="of the dry run; the data axis takes what the recipe's mesh leaves open")
    args = parser.read(argv)
    if args.ranks is not None and not args.dry_run:
        problem, mend = "says only how many ranks a dry run has", f"for a run of {args.ranks} ranks write train.mesh.data={args.ranks}"
        raise BessemerError(problem, key="--ranks", mend=mend)
    from bessemer.core import recipe as recipes
    from bessemer.run import crew, folder, observe, runner

    recipe = recipes.read(args.recipe, args.overrides)
    if args.dry_run:
        from bessemer.run import dry_run

        found = dry_run.dry_run(recipe, args.ranks)
        _save(args.out, found)
        _say(args, found, dry_run.text(found))
        return 0
    shape.folder = Path(args.out) if args.out else folder.default(recipe.name, args.smoke)
    if crew.follows():
        with (switch := runner.Switch()).listen():
            crew.follow(lambda: switch.asked)
        return 0
    watch = observe.watch_for([stage.name for stage in recipe.stages], args.quiet)
    with crew.leading():
        result = runner.run(recipe, shape.folder, smoke=args.smoke, watch=watch)
    from bessemer.run.closing import closing

    _say(args, result.plain(), closing(result))
    return 0


def _launch(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("recipe", help="a TOML file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as for run")
    parser.add_argument("--slurm", action="store_true", help="a script for sbatch")
    parser.add_argument("--kubernetes", action="store_true", help="a manifest for kubectl apply")
    parser.add_argument("--per-node", type=int, default=8, metavar="N", help="ranks, and accelerators, on each machine")
    parser.add_argument("--image", default="bessemer:latest", help="for Kubernetes: an image with bessemer installed")
    parser.add_argument("--claim", default="work", help="for Kubernetes: the PersistentVolumeClaim to work in")
    args = parser.read(argv)
    from bessemer.core import files
    from bessemer.core import recipe as recipes
    from bessemer.run import cluster

    if args.slurm == args.kubernetes:
        raise BessemerError("what is it to be launched on?", key="--slurm", mend="give --slurm or --kubernetes")
    job = cluster.job(recipes.read(args.recipe, args.overrides), [args.recipe, *args.overrides], args.per_node)
    text = cluster.slurm(job) if args.slurm else cluster.kubernetes(job, args.image, args.claim)
    if args.out:
        files.write(Path(args.out), text)
    _say(args, {"text": text, "nodes": job.nodes, "per_node": job.per_node}, f"look at    {args.out}" if args.out else text.rstrip())
    return 0


def _compare(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("recipe", help="a TOML file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="the same for every variant")
    parser.add_argument("--vary", action="append", default=[], metavar="key=a,b,c", help="every combination is trained; may be given again")
    parser.add_argument("--budget", metavar="tokens=2M|steps=N|seconds=60|flops=1P|memory=2G", help="what each training may spend, and take")
    parser.add_argument("--tune", action="append", default=[], metavar="key=N|key=a,b", help="find each variant's own value, inside the same total")
    parser.add_argument("--tuner", choices=("grid", "optuna"), default="grid", help="how --tune searches")
    parser.add_argument("--target", type=float, metavar="BITS", help="held-out bits per byte to reach; by default what the first variant does")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant, to tell differences from chance")
    parser.add_argument("--smoke", action="store_true", help="every stage at its smallest")
    args = parser.read(argv)
    from bessemer.run import compare, compare_options, compare_page, observe

    if not args.vary:
        raise BessemerError("nothing to vary", key="--vary", mend="for example --vary optim.name=adamw,muon")
    shape.folder = Path(args.out) if args.out else None
    table = compare.compare(
        args.recipe, compare_options.parse_vary(args.vary), shape.folder, budget=args.budget, seeds=args.seeds, overrides=args.overrides,
        tune=compare_options.parse_tune(args.tune), tuner=args.tuner, target=args.target,
        smoke=args.smoke, watch=observe.Watch() if args.quiet else observe.Lines(observe.to_stderr),
    )  # fmt: skip
    _say(args, table, compare_page.text(table))
    return 0


def _generate(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("model", help="a run's or a model's folder, ours or Hugging Face's")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be given again; otherwise stdin, if it is piped")
    parser.add_argument("--number", type=int, default=1, help="texts for each prompt")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="its tokenizer's, where there is none beside the model")
    for name, kind, default in SAMPLING:
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--trim", action="store_true", help="drop the beginning of a prompt that is too long for the model's context")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be given again")
    args = parser.read(argv)
    from bessemer.run import writing
    from bessemer.serve.open import open_model

    if args.number < 1:
        raise BessemerError(f"{args.number} texts can't be written", key="--number", mend="give 1 or more")
    given = [_check_text("--prompt", text) for text in args.prompt] if args.prompt else [_piped()]
    model, tokenizer = open_model(_model_in(args.model), args.tokenizer)
    options = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name, *_ in SAMPLING} | {"stop": args.stop, "trim": args.trim}
    written = writing.write(
        model, tokenizer, [prompt for prompt in given for _ in range(args.number)], options, live=not (args.json or args.quiet or args.out)
    )
    _save(args.out, written)
    if args.json:
        print(json.dumps({"texts": written}, ensure_ascii=False))
    elif args.quiet and not args.out:
        print("\n".join(each["prompt"] + each["text"] for each in written))
    return 0


def _evaluate(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("model", help="a run's or a model's folder, ours or Hugging Face's")
    parser.add_argument("tasks", nargs="*", default=[], metavar="task", help="names, and options as task.key=value; bits_per_byte if none is given")
    parser.add_argument("--data", metavar="FOLDER", help="tokens with held-out documents; those of the model's run if not given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.read(argv)
    from bessemer.run import models, observe

    chosen = models.tasks(args.tasks)
    place = _model_in(args.model)
    watch = observe.watch_for(["evaluate"], args.quiet)
    watch.begin("evaluate")
    try:
        figures = models.evaluate(
            place, chosen, Path(args.data) if args.data else None, args.seed,
            lambda done, total, unit: watch.progress("evaluate", done, total, unit, {}),
        )  # fmt: skip
    finally:
        watch.close()
    plain = {task: {name: figure.plain() for name, figure in found.items()} for task, found in figures.items()}
    _save(args.out, plain)
    rows = [(task, name, figure) for task, found in figures.items() for name, figure in found.items()]
    _say(args, plain, "\n".join(f"{task:<16} {name:<20} {float(f):9.4f}  [{f.low:.4f}, {f.high:.4f}]  of {f.count:,}" for task, name, f in rows))
    return 0


def _export(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("model", help="a run's or a model's folder")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="what to store the weights in")
    parser.add_argument("--architecture", help="llama, qwen3, ...; by default the one whose shape the model has")
    args = parser.read(argv)
    from bessemer.models import hugging_face
    from bessemer.models.package import Model
    from bessemer.models.weights import as_dtype

    place = _model_in(args.model)
    out = Path(args.out) if args.out else place.with_name(place.name + "-export")
    found = hugging_face.export(Model.open(place), out, dtype=as_dtype(args.dtype), architecture=args.architecture)
    _say(args, found | {"folder": str(out)}, f"{found['architecture']} in {out}; AutoModelForCausalLM.from_pretrained({str(out)!r}) loads it")
    return 0


def _import(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("source", help="a Hugging Face folder")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="what to store the weights in")
    args = parser.read(argv)
    from bessemer.run import models

    source = Path(args.source)
    out = Path(args.out) if args.out else Path("runs") / source.resolve().name
    info = models.import_folder(source, out, args.dtype)
    _say(args, info | {"folder": str(out)}, f"{info['architecture']}, {info['parameters']:,} parameters, in {out}; try: bessemer generate {out}")
    return 0


def _report(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("run", help="a run's folder, finished or going")
    args = parser.read(argv)
    from bessemer.run import report

    folder = Path(args.run)
    data = report.gather(folder)
    page = report.write(folder, Path(args.out) if args.out else folder / "report-now")
    _say(args, report.summary(data) | {"report": str(page)}, f"look at    {page}")
    return 0


def _methods(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("what", nargs="?", metavar="KIND|NAME")
    parser.add_argument("--markdown", action="store_true", help="write docs/methods.md, or --out")
    args = parser.read(argv)
    from bessemer.run import catalogue, catalogue_page

    if args.markdown:
        from bessemer.core import files

        out = Path(args.out) if args.out else catalogue.PAGE
        files.write(out, catalogue.markdown())
        _say(args, {"file": str(out)}, f"look at    {out}")
        return 0
    found = catalogue.look_up(args.what) if args.what else (None, catalogue.listed())
    value = catalogue_page.plain(*found, detailed=bool(args.what))
    _save(args.out, value)
    _say(args, value, catalogue_page.text(*found, detailed=bool(args.what)))
    return 0


def _doctor(parser: Parser, argv: list[str], shape: argparse.Namespace) -> int:
    parser.add_argument("--fast", action="store_true", help="measure nothing")
    args = parser.read(argv)
    from bessemer.run import doctor

    found = doctor.examine(Path.cwd(), measure=not args.fast)
    value = found | {"advice": [{"kind": kind, "text": text} for kind, text in doctor.advice(found)]}
    _save(args.out, value)
    _say(args, value, doctor.text(found))
    return 0


def _model_in(word: str) -> Path:
    """The folder of the model that a run's or a model's folder stands for; says so where a newer one is being made."""
    from bessemer.models.package import locate
    from bessemer.run.folder import unfinished

    place = locate(word)
    if unfinished(place):
        print(f"bessemer: {place} is an earlier training's model; the newest training isn't finished, and the run's command goes on", file=sys.stderr)
    return place


def _piped() -> str:
    """What stdin has, if it is piped."""
    if sys.stdin.isatty():
        return ""
    try:
        return _check_text("stdin", sys.stdin.read())
    except UnicodeDecodeError as error:
        raise _no_text("stdin", error) from None


def _check_text(source: str, text: str) -> str:
    """The text, unless it holds bytes that were no UTF-8, which some locales let pass as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _no_text(source, error) from None
    return text


def _no_text(source: str, error: UnicodeDecodeError | UnicodeEncodeError) -> BessemerError:
    mend = "give UTF-8; of a file in another encoding: iconv -f latin1 -t utf-8 FILE | bessemer generate ..."
    return BessemerError(f"is not UTF-8, at place {error.start}", key=source, mend=mend)


def _save(out: str | None, value: Any) -> None:
    """The answer as a JSON file, where `--out` names one."""
    if out:
        from bessemer.core import files

        place = Path(out)
        if place.is_dir():
            raise BessemerError("is a folder, and a file is wanted", file=place, key="--out", mend=f"for example {place / 'result.json'}")
        files.write_json(place, value)


def _say(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    """The command's answer: JSON for programs, text for people."""
    print(json.dumps(value, default=str, ensure_ascii=False) if args.json else text)


def _fail(shape: argparse.Namespace, status: int, text: str) -> int:
    print(f"bessemer: {text}", file=sys.stderr)
    if shape.json:
        print(json.dumps({"error": text, "status": status}, ensure_ascii=False))
    return status


def _write_crash(folder: Path | None) -> Path:
    import tempfile

    place = folder if folder is not None and folder.is_dir() else Path(tempfile.gettempdir())
    file = place / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    file.write_text(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return file


def _usage() -> None:
    print("bessemer COMMAND ...   from raw text to a trained, evaluated, exported model\n")
    for command, about in ABOUT.items():
        print(f"  {command:<9} {about}")
    print("\nEach takes --out PATH, --json and --quiet; `bessemer COMMAND --help` says more. Begin with: bessemer run demo")
