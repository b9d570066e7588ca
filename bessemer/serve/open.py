"""A model and its tokenizer from a folder: what generating and evaluating from the command line begin with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bessemer.core import device
from bessemer.core.errors import ArtifactError
from bessemer.data.tokenizer import Tokenizer
from bessemer.models import package
from bessemer.models.reparameterized import merge
from bessemer.serve.generate import check_vocabulary


def open_model(folder: str | Path, tokenizer: str | Path | None = None, dtype: torch.dtype | None = torch.float32) -> tuple[nn.Module, Tokenizer]:
    """The model in a folder, on this machine's device, and the tokenizer it reads with.

    Args:
        folder: a model's or a run's, ours or Hugging Face's; see `models.package.load`.
        tokenizer: a tokenizer's folder, where there is none beside the model.
        dtype: the parameters' type; None: as they are stored.

    Raises:
        ArtifactError: there is no model, no tokenizer, or one is torn.
        BessemerError: the tokenizer has more tokens than the model.
    """
    place = package.locate(folder)
    found = Path(tokenizer) if tokenizer is not None else place
    if tokenizer is None and not (found / "tokenizer.json").is_file():
        raise ArtifactError("there is no tokenizer beside the model", file=place, mend="name one's folder with --tokenizer")
    words = Tokenizer.load(found)
    model = merge(package.load(place, dtype)).to(device.device())
    check_vocabulary(model, words)
    return model, words
