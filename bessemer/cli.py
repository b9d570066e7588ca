"""The command line: each command reads its arguments, hands them to the room that does the work, and says what came of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from bessemer.core.errors import BessemerError, neighbours

ABOUT = {
    "run": "all stages of a recipe; Ctrl-C and kill are safe, and the same command resumes",
    "compare": "one recipe with keys varied, on the same budget: a table and a plot",
    "generate": "write on from a prompt with a trained model",
    "evaluate": "held-out bits per byte and tasks for a model",
    "export": "a model as a Hugging Face folder",
    "import": "a Hugging Face folder as a model of ours",
    "report": "one page that shows a run, finished or going",
    "methods": "what there is, from which paper, what was measured",
    "doctor": "what this machine has, what will be fast, what is missing and how to get it",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 our fault, 2 the input's fault, 130 stopped."""
    argv = sys.argv[1:] if argv is None else argv
    shape = argparse.Namespace(json="--json" in argv, folder=None)
    try:
        return _dispatch(argv, shape)
    except BessemerError as error:
        return _fail(shape, 2, error.describe())
    except (KeyboardInterrupt, BrokenPipeError):
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
    command = argv[0]
    if command not in ABOUT:
        raise BessemerError(f"there is no command '{command}'", mend=neighbours(command, ABOUT))
    parser = Parser(command)
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.model.depth=8")
    parser.add_argument("--smoke", action="store_true", help="every stage at its smallest, under a minute")
    args = parser.read(argv)
    from bessemer.core import recipe as recipes
    from bessemer.run import folder, observe, runner

    recipe = recipes.read(args.recipe, args.overrides)
    shape.folder = Path(args.out) if args.out else folder.default(recipe.name, args.smoke)
    watch = observe.watch_for([stage.name for stage in recipe.stages], args.quiet)
    result = runner.run(recipe, shape.folder, smoke=args.smoke, watch=watch)
    from bessemer.run.closing import closing

    _say(args, result.plain(), closing(result))
    return 0


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
