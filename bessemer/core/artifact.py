"""Artifacts: the folders that rooms hand one another, each with a manifest that says what it is and what made it."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self

from bessemer.core import files
from bessemer.core.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
KEYS: dict[str, type] = {"kind": str, "format": int, "hash": str, "files": dict, "info": dict}


class Artifact:
    """A finished folder on disk. Rooms subclass it and add how to read what is inside.

    The class attribute `kind` names it; stages ask for artifacts by class, in their signatures.
    """

    kind: ClassVar[str] = "artifact"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @property
    def hash(self) -> str:
        """Identifies the content: the same recipe, parents and files give the same hash."""
        return self.manifest["hash"]

    @property
    def info(self) -> dict[str, Any]:
        """What the stage that made it recorded: counts, sizes, resolved options."""
        return self.manifest["info"]

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Self:
        """Opens an artifact folder after checking that it is of this kind, whole and unaltered.

        Args:
            folder: the artifact's folder.
            verify: compare every file's checksum; otherwise only sizes.

        Raises:
            ArtifactError: it is missing, of another kind or format, or a file is missing, truncated or altered.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError("there is no such folder", file=folder)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(
                f"has no {MANIFEST}, so it is no finished artifact", file=folder, mend="name the folder of a stage, such as runs/demo/tokenize"
            )
        manifest = files.read_json(folder / MANIFEST)
        for key, type_ in KEYS.items():
            if not isinstance(manifest, dict) or not isinstance(manifest.get(key), type_):
                raise ArtifactError("is not a bessemer manifest: this key is missing or of the wrong type", file=folder / MANIFEST, key=key)
        if manifest["format"] != FORMAT:
            raise ArtifactError(f"is of format {manifest['format']}, and this version reads {FORMAT}", file=folder / MANIFEST, key="format")
        if cls.kind not in ("artifact", manifest["kind"]):
            problem = f"holds {_some(manifest['kind'])} where {_some(cls.kind)} {'are' if _many(cls.kind) else 'is'} wanted"
            raise ArtifactError(problem, file=folder, key="kind", mend=_beside(folder, cls.kind))
        _check_files(folder, manifest["files"], verify)
        return cls(folder, manifest)


def newest(folder: Path, kind: str) -> Path | None:
    """The artifact of a kind that was made last in a run's folder; None if there is none. Hidden folders are unfinished stages."""
    found = []
    for path in folder.glob(f"*/{MANIFEST}"):
        content = None if path.parent.name.startswith(".") else files.read_json(path)
        if isinstance(content, dict) and content.get("kind") == kind:
            found.append((str(content.get("made_at", "")), path.stat().st_mtime_ns, path.parent))
    return max(found)[2] if found else None


def seal(
    folder: Path,
    kind: str,
    *,
    recipe: Any,
    parents: dict[str, str],
    info: dict[str, Any],
    seconds: float = 0.0,
    key: str = "",
    sums: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Writes the manifest that makes a folder an artifact: the last file written, so its presence means completeness.

    Args:
        recipe: the resolved options that made it, as plain JSON values.
        parents: name of each parent artifact -> its hash.
        info: what readers and reports want to know.
        seconds: how long making it took.
        key: identifies what it was asked to be made from, so that a second run knows it needn't be made again.
        sums: checksums that were computed while writing, by file name; the other files are read for theirs.
    """
    sums, listed = sums or {}, {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            listed[name] = {"bytes": path.stat().st_size, "xxh3": sums.get(name) or files.checksum(path)}
    identity = {"kind": kind, "recipe": recipe, "parents": parents, "files": {n: f["xxh3"] for n, f in listed.items()}}
    manifest = {
        "kind": kind,
        "format": FORMAT,
        "key": key,
        "hash": digest(identity),
        "recipe": recipe,
        "recipe_hash": digest(recipe),
        "parents": parents,
        "info": info,
        "files": listed,
        "made_by": made_by(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
    }
    files.write_json(folder / MANIFEST, manifest)
    files.sync(folder)
    return manifest


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, in hex, 32 characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def made_by() -> dict[str, str]:
    """The versions that matter to a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("bessemer", "torch", "numpy", "tokenizers", "tiktoken", "pyarrow", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"command": " ".join(sys.argv)}


def _many(kind: str) -> bool:
    return kind.endswith("s")


def _some(kind: str) -> str:
    """The kind with its article, if it takes one."""
    return kind if _many(kind) else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _beside(folder: Path, kind: str) -> str | None:
    """A mend that names the artifact of the right kind which stands in the same run."""
    try:
        found = newest(folder.parent, kind)
    except ArtifactError:  # a torn neighbour is not what was asked about
        found = None
    return f"the run has {_some(kind)} in {found}" if found else None


def _check_files(folder: Path, listed: dict[str, dict[str, Any]], verify: bool) -> None:
    again = f"delete the folder {folder} and give the command that made it again, to make it anew"
    for name, entry in listed.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(entry, dict) or not {"bytes", "xxh3"} <= entry.keys():
            raise ArtifactError("is not how a manifest lists a file", file=folder / MANIFEST, key=f"files.{name}")
        if not path.is_file():
            raise ArtifactError("the file is missing", file=path, mend=again)
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ArtifactError(f"has {size} bytes where its manifest says {entry['bytes']}: it was truncated or altered", file=path, mend=again)
        if verify and files.checksum(path) != entry["xxh3"]:
            raise ArtifactError("its checksum differs from its manifest's: it was altered", file=path, mend=again)
