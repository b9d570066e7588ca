"""Import from Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bessemer.core.errors import ArtifactError
from bessemer.core.work import Work
from bessemer.models.hugging_face import read_folder
from bessemer.models.package import CARD, Model, save_model
from bessemer.models.weights import as_dtype


def import_model(work: Work, *, path: str, dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep") -> Model:
    """Reads a Hugging Face folder (Llama, Mistral, Qwen 2 and 3, OLMo 2, GPT-2; Mixtral, Qwen 3 MoE, OLMoE) into a model of ours, to evaluate, train on or serve.

    Args:
        path: the folder with config.json and safetensors.
        dtype: what to store the weights in.

    Raises:
        ArtifactError: as in `models/hugging_face.py`.
    """
    folder = Path(path)
    check_source(folder)
    model = read_folder(folder, as_dtype(dtype))
    imported: Any = model.imported
    work.info |= save_model(model, work.out, tokenizer=folder, extra=imported) | {"architecture": imported["architecture"]}
    return Model(work.out, {})


def check_source(folder: Path) -> None:
    """Raises ArtifactError unless it is a Hugging Face folder."""
    if not (folder / "config.json").is_file():
        raise ArtifactError("has no config.json, so it is no Hugging Face folder", file=folder, key="import_model.path", mend=_mend(folder))


def _mend(folder: Path) -> str | None:
    """What was likely meant: the export of a run of ours, or a model that needs no import."""
    if (folder / CARD).is_file():
        return "it is a model of ours already, and is used as it is"
    inside = sorted(file.parent for file in folder.glob("*/config.json"))
    return f"name {inside[0]}" if inside else None
