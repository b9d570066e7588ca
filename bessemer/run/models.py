"""What the commands that use a model do with it: import, and evaluation with the held-out text beside it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bessemer.core import files, registry
from bessemer.core.artifact import MANIFEST, seal
from bessemer.core.errors import ArtifactError, BessemerError, DataError, RecipeError
from bessemer.core.work import Work
from bessemer.run.folder import OWNER
from bessemer.run.wiring import find_artifact

if TYPE_CHECKING:
    from bessemer.data.example_store import Examples
    from bessemer.data.tokenizer import Tokenizer
    from bessemer.data.tokens import Tokens
    from bessemer.evaluate.figure import Figure

TASKS = "evaluate/tasks"


def import_folder(source: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Makes a model artifact of ours at `out` from a Hugging Face folder, whole or not at all.

    Raises:
        ArtifactError: `out` holds something, or the source can't be read.
    """
    from bessemer.run.stages.import_model import check_source, import_model

    if not source.is_dir():
        raise ArtifactError("there is no such folder", file=source)
    check_source(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BessemerError("is not empty; nothing in it was touched", file=out, mend="choose another folder with --out")
    with files.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work, options = Work(made), {"path": str(source.resolve()), "dtype": dtype}
        import_model(work, **options)  # type: ignore[arg-type]  # argparse has checked dtype
        made.chmod(0o755)
        seal(made, "model", recipe={"do": "import_model", **options}, parents={}, info=work.info)
        files.replace_folder(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return work.info


def tasks(words: list[str]) -> list[registry.Choice]:
    """`["bits_per_byte", "cloze", "cloze.path=x.jsonl"]` -> the tasks with their options.

    Raises:
        BessemerError: an unknown task or option, or an option of a task that isn't named.
    """
    from bessemer.core.recipe import parse_value

    tables: dict[str, dict[str, Any]] = {word: {"name": word} for word in words if "=" not in word} or {"bits_per_byte": {"name": "bits_per_byte"}}
    for word in words:
        key, equals, value = word.partition("=")
        task, _, option = key.partition(".")
        if equals and (task not in tables or not option):
            raise BessemerError(
                f"'{word}' is an option of no task given here", key=key, mend="name the task and then its option: cloze cloze.path=x.jsonl"
            )
        if equals:
            tables[task][option] = parse_value(value)
    chosen = []
    for table in tables.values():
        try:
            chosen.append(registry.choose(TASKS, table))
        except registry.PydanticCustomError as error:
            context = error.context or {}
            fault = (context.get("nested") or [registry.Fault((), error.message(), context.get("mend"))])[0]
            raise RecipeError(fault.problem, key=".".join([table["name"], *map(str, fault.at)]), mend=fault.mend) from None
    return chosen


def evaluate(folder: Path, chosen: list[registry.Choice], data: Path | None, seed: int, progress: Any) -> dict[str, dict[str, Figure]]:
    """Task name -> its figures, for the model in `folder`.

    Args:
        data: a token store's or run's folder with held-out documents; by default that of the model's run.
        progress: told how far a task is: done, total, unit.

    Raises:
        DataError: the store's tokens are another tokenizer's than the model's.
    """
    from bessemer.evaluate.evaluation import measure
    from bessemer.evaluate.subject import Subject
    from bessemer.serve.open import open_model

    model, tokenizer = open_model(folder)
    store = _store(folder, data)
    if store is not None:
        _check_tokenizer(store, tokenizer, folder)
    subject = Subject(model, tokenizer, store, seed=seed, progress=progress, examples=_examples(folder))
    return measure(subject, chosen)


def _check_tokenizer(store: Tokens, tokenizer: Tokenizer, folder: Path) -> None:
    """Refuses tokens of another tokenizer, whose figures would mean nothing, and says how the same text is measured."""
    try:
        store.check_tokenizer(tokenizer)
    except DataError as error:
        first = f'load_tokenizer with path = "{folder}"', f'tokenize with inputs = {{ corpus = "{store.folder.parent}" }}'
        mend = f'tokenize the text anew, by a recipe of three stages: {", ".join(first)}, evaluate with inputs = {{ model = "{folder}" }}'
        if not (folder / MANIFEST).is_file():  # another's format, which only import_model reads
            mend = f"bessemer import {folder}, and evaluate what that makes"
        raise DataError(error.problem, file=error.file, mend=mend) from None


def _examples(folder: Path) -> list[Examples]:
    """The example stores of the run that the model is in, as its own evaluation has them."""
    from bessemer.data.example_store import Examples

    run = folder.resolve().parent
    places = sorted(file.parent for file in run.glob(f"*/{MANIFEST}")) if (run / OWNER).is_file() else []
    return [
        Examples.open(place, verify=False)
        for place in places
        if not place.name.startswith(".") and files.read_json(place / MANIFEST)["kind"] == Examples.kind
    ]


def _store(folder: Path, data: Path | None) -> Tokens | None:
    from bessemer.data.tokens import Tokens

    if data is not None:
        return Tokens.open(find_artifact(data, Tokens))
    for run in (folder, folder.resolve().parent):
        found = find_artifact(run, Tokens)
        if found != run and (found / MANIFEST).is_file():
            return Tokens.open(found)
    return None
