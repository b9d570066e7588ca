"""A model as a folder: weights, the options to build it again, and the tokenizer it reads with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from bessemer.core import files
from bessemer.core.artifact import MANIFEST, Artifact, newest
from bessemer.core.errors import ArtifactError
from bessemer.core.registry import as_plain, choose
from bessemer.data.tokenizer import Tokenizer
from bessemer.models import attach, reparameterized, weights
from bessemer.models.transfer import parameters, tensors

CARD = "model.json"
FAMILIES = "models/families"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "bessemer_tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Model(Artifact):
    """A trained or imported model: `model.safetensors`, `model.json` and a tokenizer's files.

    Attributes:
        card: family, vocabulary, options, special tokens' ids ("bos", "eos", "pad"), and the architecture it came from.
    """

    kind = "model"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        self.card = read_card(folder)

    @property
    def options(self) -> dict[str, Any]:
        return self.card["options"]

    @property
    def vocabulary(self) -> int:
        return self.card["vocabulary"]

    def build(self, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """The model with its weights, in evaluation mode.

        Args:
            dtype: the parameters' type; None: as they are stored.

        Raises:
            ArtifactError: tensors are missing, unexpected or of another shape, or a file is torn.
        """
        return build(self.folder, dtype)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the weights, if there is one."""
        return Tokenizer.load(self.folder) if (self.folder / "tokenizer.json").is_file() else None


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    tokenizer: Tokenizer | Path | None = None,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
    whole: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Writes a model's files into `folder`; the card comes last.

    Args:
        model: of a family, with `options` and `vocabulary`.
        tokenizer: copied beside the weights: a tokenizer, or a folder with one's files.
        dtype: what to store parameters in; None: as they are. Buffers keep their types.
        extra: further keys of the card ("architecture", "tokens").
        whole: parameters by name, where the model itself holds only one rank's pieces of them.

    Returns:
        Counts worth reporting: parameters, bytes, dtype.

    Raises:
        ArtifactError: the tokenizer has more tokens than the model.
    """
    found = {full: (whole or {}).get(full, value).detach() for full, value in tensors(model).items()}
    card: dict[str, Any] = {"format": 1, "family": family_of(model), "vocabulary": model.vocabulary, "options": model.options} | (extra or {})
    if getattr(model, "adapt", None) is not None:
        card["adapt"] = as_plain(model.adapt)
    notes = getattr(model, "attached", {})
    if any(notes.values()):
        card["attached"] = notes
    if isinstance(tokenizer, Tokenizer):
        card.setdefault("tokens", {"bos": tokenizer.begin, "eos": tokenizer.end, "pad": tokenizer.pad})
    check_vocabulary(tokenizer, card["vocabulary"])
    copy_tokenizer(tokenizer, folder)
    cast = set() if dtype is None else {full for full, *_ in parameters(model)}
    written = weights.save({name: value.to(dtype) if name in cast else value for name, value in found.items()}, folder, shard_bytes)
    files.write_json(folder / CARD, card)
    kinds = {str(value.dtype if dtype is None else dtype).removeprefix("torch.") for value in found.values()}
    return {
        "parameters": sum(value.numel() for value in found.values()),
        "bytes": sum(path.stat().st_size for path in written),
        "dtype": ", ".join(sorted(kinds)),
        "options": model.options,
        "vocabulary": model.vocabulary,
    }


def family_of(model: nn.Module) -> str:
    """The name a recipe gives the model's family: its file's, or a dotted path for one outside the package."""
    kind = next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch."))  # sharding makes a class of its own
    module = kind.__module__
    inside = "bessemer." + FAMILIES.replace("/", ".") + "."
    return module.removeprefix(inside) if module.startswith(inside) else f"{module}.{kind.__qualname__}"


def read_card(folder: Path) -> dict[str, Any]:
    """The checked content of model.json.

    Raises:
        ArtifactError: it is missing, torn, or lacks a key.
    """
    card = files.read_json(folder / CARD)
    for key, kind in (("format", int), ("family", str), ("vocabulary", int), ("options", dict)):
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise ArtifactError("this key is missing or of the wrong kind", file=folder / CARD, key=key)
    if card["format"] != 1:
        raise ArtifactError(f"is of format {card['format']}, and this version reads 1", file=folder / CARD, key="format")
    return card


def build(folder: Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """The model in a folder with model.json and weights; see `Model.build`."""
    card = read_card(folder)
    stored = weights.Weights(folder)
    model = skeleton(card["family"], card["vocabulary"], card["options"], folder / CARD)
    if card.get("adapt") is not None:
        model = _adapted(model, card["adapt"], folder / CARD)
    if card.get("attached") is not None:
        attach.again(model, card["attached"], folder / CARD, stored)
    wanted = {full: tuple(value.shape) for full, value in tensors(model).items()}
    check_names(stored, set(wanted), set(stored))
    for name, shape in wanted.items():
        if stored.shape(name) != shape:
            raise misshapen(stored.file_of(name), name, stored.shape(name), shape)
    fill(model, {name: stored[name] for name in wanted}, dtype)
    return model.eval()


def skeleton(family: str, vocabulary: int, options: dict[str, Any], file: Path) -> nn.Module:
    """The model without memory for its parameters.

    Raises:
        ArtifactError: the options in `file` don't build one.
    """
    try:
        choice = choose(FAMILIES, {"name": family, **options})
    except PydanticCustomError as error:
        faults = (error.context or {}).get("nested") or []
        where = ".".join(["options", *(str(part) for part in faults[0].at)]) if faults else "family"
        mend = faults[0].mend if faults else (error.context or {}).get("mend")
        raise ArtifactError(faults[0].problem if faults else error.message(), file=file, key=where, mend=mend) from None
    with torch.device("meta"):
        return choice(vocabulary)


def _adapted(model: nn.Module, adapt: Any, file: Path) -> nn.Module:
    """The skeleton with the reparameterized layers its card speaks of.

    Raises:
        ArtifactError: there is no such method, or it has other options.
    """
    try:
        return reparameterized.reparameterize(model, choose(reparameterized.KIND, adapt))
    except PydanticCustomError as error:
        raise ArtifactError(error.message(), file=file, key="adapt", mend=(error.context or {}).get("mend")) from None


@torch.no_grad()
def fill(model: nn.Module, found: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Puts tensors in the place of a skeleton's parameters and buffers; parameters that were shared stay shared."""
    made: dict[int, nn.Parameter] = {}
    for full, parameter, *_ in list(parameters(model)):
        value = found[full]
        made[id(parameter)] = nn.Parameter(value if dtype is None else value.to(dtype), requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, made[id(parameter)])
    for prefix, module in model.named_modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            full = f"{prefix}.{name}" if prefix else name
            if full in found:
                setattr(module, name, found[full])


def check_names(stored: weights.Weights, wanted: set[str], found: set[str]) -> None:
    """Raises ArtifactError unless the tensors found are those wanted."""
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    file = stored.file_of(next(iter(stored.places))) if stored.places else stored.folder
    if missing:
        raise ArtifactError(f"{len(missing)} tensors are missing, among them {', '.join(missing[:3])}", file=file, key=missing[0])
    if unexpected:
        raise ArtifactError(f"{len(unexpected)} tensors belong to no parameter, among them {', '.join(unexpected[:3])}", file=file, key=unexpected[0])


def misshapen(file: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> ArtifactError:
    """The error for a tensor whose shape is not what the options ask for."""
    return ArtifactError(f"has shape {list(found)} where the options ask for {list(wanted)}", file=file, key=name)


def check_vocabulary(tokenizer: Tokenizer | Path | None, vocabulary: int) -> None:
    """Raises ArtifactError if the tokenizer has ids the model has no vector for."""
    if isinstance(tokenizer, Path):
        tokenizer = Tokenizer.load(tokenizer) if (tokenizer / "tokenizer.json").is_file() else None
    if tokenizer is not None and tokenizer.vocabulary_size > vocabulary:
        raise ArtifactError(
            f"has {tokenizer.vocabulary_size} tokens, and the model only {vocabulary}",
            file=tokenizer.folder / "tokenizer.json",
            mend="bring the model and the tokenizer it was trained with together",
        )


def copy_tokenizer(tokenizer: Tokenizer | Path | None, folder: Path) -> None:
    """Puts a tokenizer's files into `folder`."""
    if tokenizer is None:
        return
    source = tokenizer.folder if isinstance(tokenizer, Tokenizer) else tokenizer
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def load(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """The model in a folder, ready for `model(tokens)`: a model's of ours, a run's (the newest model in it) or a Hugging Face one.

    Raises:
        ArtifactError: there is no model in it, or it is torn or altered.
    """
    place = locate(folder)
    if (place / MANIFEST).is_file() and (place / CARD).is_file():
        return Model.open(place).build(dtype)
    if (place / CARD).is_file():
        return build(place, dtype)
    from bessemer.models.hugging_face import read_folder

    return read_folder(place, dtype)


def locate(folder: str | Path) -> Path:
    """The folder that holds the model itself: the given one, or that of the newest model of a run.

    Raises:
        ArtifactError: there is no model in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ArtifactError("there is no such folder", file=place, mend="name a run's or a model's folder, such as runs/demo")
    if (place / CARD).is_file() or (place / "config.json").is_file():
        return place
    found = newest(place, Model.kind)
    if found is None:
        raise ArtifactError("holds no model", file=place, mend=f"name a folder with {CARD} or config.json, or a run whose training is done")
    return found
