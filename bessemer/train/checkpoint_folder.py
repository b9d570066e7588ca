"""The folder a run's checkpoints lie in: finding the newest whole one, keeping by policy, sweeping what a kill left."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from bessemer.core import files
from bessemer.core.artifact import MANIFEST, Artifact
from bessemer.core.errors import ArtifactError, BessemerError, neighbours
from bessemer.train.checkpoint_pieces import in_pieces
from bessemer.train.checkpoint_storage import NAMES, Reader, read_index

PLAIN = "state.json"
STEP = re.compile(r"step-(\d{8,})")

# one process is as good a group as many, and torch says so at every save and load
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoint(Artifact):
    """A state of training on disk: `tensors` by name, whole whatever the number of ranks that saved it, and `plain` values."""

    kind = "checkpoint"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        self.index = read_index(folder, manifest["files"])

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Self:
        """Opens a checkpoint after checking that it is whole and unaltered; nothing in it is ever unpickled.

        Raises:
            ArtifactError: it is missing, truncated, altered, of another kind or format.
        """
        folder = Path(folder)
        if folder.is_dir() and not (folder / MANIFEST).exists() and (folder / ".metadata").exists():
            mend = "export the model from there as a Hugging Face folder of safetensors and import that"
            raise ArtifactError("is a checkpoint of torch's own format, whose index is a pickle and could run anything", file=folder, mend=mend)
        return super().open(folder, verify=verify)

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return int(self.info["step"])

    @property
    def plain(self) -> dict[str, Any]:
        """The JSON values that were saved beside the tensors."""
        return files.read_json(self.folder / PLAIN)

    @property
    def shapes(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """The type and the whole shape of each tensor, by name."""
        return {name: (NAMES[row["dtype"]], torch.Size(row["shape"])) for name, row in self.index.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Fills `tensors` in place, each rank its own part of a DTensor, whatever the layout they were saved from.

        Every rank of the default process group calls it. Tensors of the checkpoint that are not asked for are left out.

        Raises:
            ArtifactError: a tensor is missing, or of another shape or type; none was changed then.
        """
        shapes = self.shapes
        for name, tensor in tensors.items():
            self._check(name, tensor, shapes)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            with torch.no_grad():
                load(in_pieces(tensors), storage_reader=Reader(self.folder, self.index), planner=planner, no_dist=not dist.is_initialized())
        except CheckpointException as error:
            raise unwrap(error, self.folder) from error

    def read(self, *prefixes: str) -> dict[str, torch.Tensor]:
        """The whole tensors whose names begin with one of `prefixes` (all without any), on the host; by one process alone."""
        wanted = {name: row for name, row in self.shapes.items() if name.startswith(prefixes or "")}
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in wanted.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        load(dict(tensors), storage_reader=Reader(self.folder, self.index), planner=planner, no_dist=True)
        return tensors

    def _check(self, name: str, tensor: torch.Tensor, shapes: dict[str, tuple[torch.dtype, torch.Size]]) -> None:
        if name not in shapes:
            problem = "the checkpoint holds no such tensor, so it is of another model or optimizer"
            raise ArtifactError(problem, file=self.folder, key=name, mend=neighbours(name, shapes))
        dtype, shape = shapes[name]
        if shape != tensor.shape:
            problem = f"is {_form(shape)} in the checkpoint and {_form(tensor.shape)} here"
            raise ArtifactError(problem, file=self.folder, key=name, mend=_mend(shape, tensor.shape))
        if dtype != tensor.dtype:
            mend = "give the same precision options as the run that saved it"
            raise ArtifactError(f"is {dtype} in the checkpoint and {tensor.dtype} here".replace("torch.", ""), file=self.folder, key=name, mend=mend)


def checkpoints(folder: Path) -> list[Path]:
    """The folders of finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := STEP.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found)]


def latest(folder: Path, *, identity: dict[str, str] | None = None, note: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest whole and verified checkpoint, or None where none was ever finished.

    A kill can't tear a checkpoint, so a damaged one means a failing disk or another hand. Training then goes on from the one
    before, and `note` says so: that costs the steps between and nothing else. Where every one is damaged the error of the newest is
    raised, for to begin again in silence would throw a run away. With torch.distributed initialised every rank calls it, each
    verifies its share of the files, and all get the same answer.

    Args:
        identity: what the run is made from, as given to `Checkpointer`; None opens a checkpoint of any run.

    Raises:
        ArtifactError: all are damaged, or the newest is another run's.
    """
    first: ArtifactError | None = None
    for path in reversed(_same_everywhere(checkpoints(folder))):
        try:
            found = _open_together(path)
        except ArtifactError as error:
            first = first or error
            note(f"checkpoint {path.name} is damaged and is passed over: {error.problem} ({error.file})")
            continue
        _check_identity(found, identity)
        return found
    if first:
        raise first
    return None


def sweep(folder: Path) -> None:
    """Removes what a killed save or deletion left, and puts back a checkpoint whose replacement was interrupted."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        left = re.fullmatch(r"\.(step-\d+)\.(part|gone|replaced)", path.name)
        if left and left[2] == "replaced" and not (folder / left[1]).exists():
            os.replace(path, folder / left[1])
        elif left:
            shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Deletes a checkpoint; one cut short by a kill leaves nothing that looks like a checkpoint."""
    gone = path.with_name(f".{path.name}.gone")
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def superseded(saved: dict[int, float | None], *, last: int, every: int, best: int, better: Literal["lower", "higher"]) -> list[int]:
    """The steps whose checkpoints the policy lets go.

    Args:
        saved: step -> its metric, None where it was not measured.
        last: how many of the newest to keep.
        every: keep each whose step is a multiple of this; 0 for none.
        best: how many of the best by the metric to keep, earlier ones first among equals.
    """
    keep = set(sorted(saved)[-last:] if last else [])
    keep |= {step for step in saved if every and step % every == 0}
    sign = 1 if better == "lower" else -1
    measured = sorted((sign * metric, step) for step, metric in saved.items() if metric is not None and metric == metric)
    keep |= {step for _, step in measured[:best]}
    return sorted(set(saved) - keep)


def unwrap(error: CheckpointException, folder: Path) -> BessemerError:
    """The clearest of the errors that the ranks met."""
    causes = [failure[0] for failure in error.failures.values()]
    for cause in causes:
        if isinstance(cause, BessemerError):
            return cause
    rank, cause = next((rank, failure[0]) for rank, failure in error.failures.items())
    return BessemerError(f"rank {rank} failed: {type(cause).__name__}: {cause}", file=folder)


def _open_together(path: Path) -> Checkpoint:
    """Opens and verifies a checkpoint, the ranks sharing the reading; all of them raise if one does."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Checkpoint.open(path)
    rank, ranks, problem, found = dist.get_rank(), dist.get_world_size(), None, None
    try:
        found = Checkpoint.open(path, verify=False)
        for name, entry in list(found.manifest["files"].items())[rank::ranks]:
            if files.checksum(path / name) != entry["xxh3"]:
                raise ArtifactError("its checksum differs from its manifest's: it was altered", file=path / name)
    except ArtifactError as error:
        problem = error
    problems: list[ArtifactError | None] = [None] * ranks
    dist.all_gather_object(problems, problem)
    for other in problems:
        if other:
            raise other
    assert found is not None
    return found


def _same_everywhere(paths: list[Path]) -> list[Path]:
    """Rank 0's list, for a shared disk may show each rank another moment."""
    if not dist.is_initialized():
        return paths
    held = [paths]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def _check_identity(found: Checkpoint, identity: dict[str, str] | None) -> None:
    if identity is None or found.manifest["parents"] == identity:
        return
    there = found.manifest["parents"]
    names = ", ".join(sorted(name for name in there.keys() | identity.keys() if there.get(name) != identity.get(name)))
    mend = "name another folder with --out, or put back what the run was started with"
    raise ArtifactError(f"belongs to another run: its {names} differs from this run's", file=found.folder, mend=mend)


def _form(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _mend(there: torch.Size, here: torch.Size) -> str:
    if len(there) == len(here) == 2 and there[0] != here[0] and there[1] == here[1]:
        rows = f"({there[0]} and {here[0]})"
        return f"if this is an embedding or a head, the vocabularies differ {rows}: use the tokenizer the checkpoint was trained with"
    return "build the model with the shape the checkpoint was trained with"
