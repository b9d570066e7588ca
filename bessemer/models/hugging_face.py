"""Models to and from Hugging Face folders: config.json, safetensors in one file or shards, the tokenizer's files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.core.errors import ArtifactError, neighbours
from bessemer.core.registry import find, names
from bessemer.models import package, weights
from bessemer.models.convert._architecture import Architecture, Config, Source
from bessemer.models.reparameterized import merge
from bessemer.models.transfer import parameters

ARCHITECTURES = "models/convert"
MARK = "bessemer_export.json"


class Export(Artifact):
    """A Hugging Face folder: config.json, generation_config.json, model.safetensors, the tokenizer's files."""

    kind = "export"


def architectures() -> list[Architecture]:
    """One of each converter."""
    return [find(ARCHITECTURES, name)() for name in names(ARCHITECTURES)]


def read_folder(folder: Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """The model in a Hugging Face folder, in evaluation mode; `model.imported` holds its architecture and special tokens.

    Args:
        dtype: the parameters' type; None: as they are stored.

    Raises:
        ArtifactError: the architecture or one of its settings is not supported, a shard is missing or truncated, tensors are
            missing, unexpected or misshapen, or the tokenizer has more tokens than the model.
    """
    file = folder / "config.json"
    table = files.read_json(file)
    if not isinstance(table, dict):
        raise ArtifactError("is no table of settings", file=file)
    kind = _architecture_of(table, file)
    config = Config(table, file)
    config.read |= {"vocab_size"}
    vocabulary = config("vocab_size", int)
    options = kind.options(config)
    config.finish()
    model = package.skeleton("decoder", vocabulary, options, file)
    stored = weights.Weights(folder)
    package.fill(model, _convert(kind, model, stored), dtype)
    package.check_vocabulary(folder, vocabulary)
    model.imported = {"architecture": kind.model_type, "tokens": special_tokens(folder, table)}  # type: ignore[assignment]
    return model.eval()


def _architecture_of(table: dict[str, Any], file: Path) -> Architecture:
    known = {each.model_type: each for each in architectures()}
    model_type = table.get("model_type")
    if model_type not in known:
        raise ArtifactError(f"{model_type!r} is not supported", file=file, key="model_type", mend=neighbours(str(model_type), known))
    kind = known[model_type]
    told = table.get("architectures")
    if told and kind.name not in told:
        raise ArtifactError(f"{told} is no {kind.name}", file=file, key="architectures", mend="only models that predict the next token can be read")
    return kind


def _convert(kind: Architecture, model: nn.Module, stored: weights.Weights) -> dict[str, Tensor]:
    """Our parameters made of the folder's tensors."""
    options: dict[str, Any] = model.options  # type: ignore[assignment]
    sources = kind.sources(options)
    bare = not any(name.startswith(kind.prefix) for name in stored)  # saved from the trunk alone, as OpenAI's GPT-2 was

    def theirs(name: str) -> str:
        return name.removeprefix(kind.prefix) if bare else name

    wanted = {theirs(name) for source in sources.values() for name in source.names}
    ignored = {name for name in stored if name.endswith(kind.dropped)} | ({"lm_head.weight"} if options["tied"] else set())
    package.check_names(stored, wanted, set(stored) - ignored)
    shapes = {full: tuple(value.shape) for full, value, *_ in parameters(model)}
    return {ours: _gather(source, shapes[ours], stored, theirs) for ours, source in sources.items()}


def _gather(source: Source, shape: tuple[int, ...], stored: weights.Weights, theirs: Callable[[str], str]) -> Tensor:
    parts = []
    flat = shape if len(shape) < 3 else (shape[0] * shape[1], shape[2])  # stacked matrices of experts lie one below the other
    for name, rows in zip(source.names, source.rows or (flat[0],), strict=True):
        wanted = (rows, *flat[1:])
        wanted = wanted[::-1] if source.transposed else wanted
        if stored.shape(theirs(name)) != wanted:
            raise package.misshapen(stored.file_of(theirs(name)), theirs(name), stored.shape(theirs(name)), wanted)
        part = stored[theirs(name)]
        parts.append(part.T.contiguous() if source.transposed else part)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


def special_tokens(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Ids of the begin, end and padding tokens; generation_config.json, where there is one, knows better than config.json."""
    given = files.read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    found = {short: given.get(f"{short}_token_id", table.get(f"{short}_token_id")) for short in ("bos", "eos", "pad")}
    return {short: value for short, value in found.items() if value is not None}


def choose_architecture(options: dict[str, Any], wanted: str | None = None, came_from: str | None = None) -> Architecture:
    """The architecture a model of these options is: `wanted` and no other where it is given, else `came_from` if it fits, else the first that does.

    Args:
        wanted, came_from: as `model_type` in config.json.

    Raises:
        ArtifactError: there is no such architecture, or it doesn't fit, or none does; the reason is given for each.
    """
    reasons = {each: each.why_not(options) for each in architectures()}
    if wanted is not None:
        return _wanted(reasons, wanted)
    fitting = [each for each, reason in reasons.items() if reason is None]
    if fitting:
        return next((each for each in fitting if each.model_type == came_from), fitting[0])
    told = "; ".join(f"not {each.model_type}: {reason}" for each, reason in reasons.items())
    raise ArtifactError(
        f"no Hugging Face architecture has this model's options ({told})",
        key="model",
        mend="change the options named, or keep the model in our own format",
    )


def _wanted(reasons: dict[Architecture, str | None], wanted: str) -> Architecture:
    known = {each.model_type: each for each in reasons}
    if wanted not in known:
        raise ArtifactError(f"there is no '{wanted}' in {ARCHITECTURES}", key="architecture", mend=f"there is {', '.join(known)}")
    reason = reasons[known[wanted]]
    if reason is not None:
        fitting = [each.model_type for each in reasons if reasons[each] is None]
        mend = f"it fits {' and '.join(fitting)}" if fitting else "keep the model in our own format"
        raise ArtifactError(f"the model is no {wanted}: {reason}", key="architecture", mend=mend)
    return known[wanted]


def write_folder(
    model: nn.Module,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    tokens: dict[str, Any] | None = None,
    architecture: str | None = None,
    came_from: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
) -> dict[str, Any]:
    """Writes a model as `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` read it; modules that look further ahead are left out.

    Args:
        tokenizer: a folder with a tokenizer's files.
        tokens: ids of "bos", "eos" and "pad".
        architecture: the model_type to write, and no other; None: one that fits.
        came_from: the model_type to prefer where several fit.
        dtype: what to store in; None: as it is.

    Returns:
        Counts worth reporting.

    Raises:
        ArtifactError: no architecture has the model's options, or not the one asked for; or the tokenizer has more tokens than the model.
    """
    options: dict[str, Any] = model.options  # type: ignore[assignment]
    kind = choose_architecture(options, architecture, came_from)
    package.check_vocabulary(tokenizer, model.vocabulary)  # type: ignore[arg-type]
    ours = {full: value.detach() for full, value, *_ in parameters(model)}
    written_as = dtype or next(iter(ours.values())).dtype
    tensors = {name: part for full, source in kind.sources(options).items() for name, part in _scatter(source, ours[full], dtype).items()}
    ids = {f"{short}_token_id": (tokens or {}).get(short) for short in ("bos", "eos", "pad")}
    config = {"architectures": [kind.name], "model_type": kind.model_type, "torch_dtype": str(written_as).removeprefix("torch.")}
    package.copy_tokenizer(tokenizer, folder)
    written = weights.save(tensors, folder, shard_bytes)
    files.write_json(folder / "generation_config.json", {key: value for key, value in ids.items() if value is not None})
    files.write_json(folder / "config.json", config | kind.config(options, model.vocabulary) | ids)  # type: ignore[arg-type]
    left = [[part for part in full.split(".") if not part.isdigit()] for full in ours.keys() - kind.sources(options).keys()]
    dropped = sorted({".".join(parts[: 2 if parts[0] == "blocks" else 1]) for parts in left})
    return {"architecture": kind.name, "bytes": sum(path.stat().st_size for path in written), "dtype": config["torch_dtype"], "left_out": dropped}


def _scatter(source: Source, value: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor | Callable[[], Tensor]]:
    value = value if value.ndim < 3 else value.flatten(0, 1)
    parts = value.split(list(source.rows)) if source.rows else (value,)

    def ready(part: Tensor) -> Tensor:
        part = part.T if source.transposed else part
        return (part if dtype is None else part.to(dtype)).contiguous()

    return {name: partial(ready, part) for name, part in zip(source.names, parts, strict=True)}


def export(model: package.Model, folder: str | Path, *, dtype: torch.dtype | None = None, architecture: str | None = None) -> dict[str, Any]:
    """Exports a model's folder to a Hugging Face one, whole or not at all.

    Args:
        folder: a new, empty, or formerly exported folder; another is refused and not touched.

    Raises:
        ArtifactError: the folder holds something else, or as in `write_folder`.
    """
    place = Path(folder)
    refuse_foreign(place)
    with files.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        found = package_to(model, made, dtype=dtype, architecture=architecture)
        files.write_json(made / MARK, {"model": model.hash} | found)
        made.chmod(0o755)
        files.replace_folder(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found


def package_to(model: package.Model, folder: Path, *, dtype: torch.dtype | None = None, architecture: str | None = None) -> dict[str, Any]:
    """Writes a model artifact's Hugging Face files into `folder`."""
    card = model.card
    return write_folder(
        merge(model.build(None)),
        folder,
        tokenizer=model.folder,
        tokens=card.get("tokens"),
        architecture=architecture,
        came_from=card.get("architecture"),
        dtype=dtype,
    )


def refuse_foreign(place: Path) -> None:
    """Raises ArtifactError unless `place` is new, empty, or an earlier export."""
    if place.exists() and not place.is_dir():
        raise ArtifactError("is a file, and a folder is wanted", file=place, mend="choose another with --out")
    if place.is_dir() and any(place.iterdir()) and not (place / MARK).is_file():
        raise ArtifactError("is not empty and not an earlier export; nothing in it was touched", file=place, mend="choose another folder with --out")
