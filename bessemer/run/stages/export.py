"""Export to Hugging Face's format."""

from __future__ import annotations

from typing import Literal

from bessemer.core.work import Work
from bessemer.models.hugging_face import Export, package_to
from bessemer.models.package import Model
from bessemer.models.weights import as_dtype


def export(
    work: Work, model: Model, *, dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep", architecture: str | Literal["auto"] = "auto"
) -> Export:
    """Writes the model as `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` read it.

    Args:
        dtype: what to store the weights in.
        architecture: "llama", "qwen3", ...; auto: the one it came from, or the first whose shape it has.

    Raises:
        ArtifactError: no supported architecture has the model's options, or not the one asked for.
    """
    found = package_to(model, work.out, dtype=as_dtype(dtype), architecture=None if architecture == "auto" else architecture)
    work.info |= found
    if found["left_out"]:
        work.note(f"{found['architecture']} has no place for {', '.join(found['left_out'])}: left out")
    return Export(work.out, {})
