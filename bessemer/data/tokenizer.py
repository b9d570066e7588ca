"""The tokenizer: text to ids and back, the bytes every id stands for, and the files Hugging Face's loaders read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash

from bessemer.core import files
from bessemer.core.artifact import MANIFEST, Artifact
from bessemer.core.errors import DataError
from bessemer.data.byte_level import token_bytes
from bessemer.data.fast_bpe import FastBPE, definition_of
from bessemer.data.sentencepiece_engine import SentencePieceEngine

FILE, CONFIG, NOTES = "tokenizer.json", "tokenizer_config.json", "bessemer_tokenizer.json"
MODEL = "tokenizer.model"
END, PAD = "<|end|>", "<|pad|>"
_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
_PADS = (PAD, "<pad>", "<|finetune_right_pad_id|>", "[PAD]")


class Tokenizer(Artifact):
    """Text to ids and back.

    Documents begin with the id `begin` and end with the id `end`; most vocabularies have one token for both. Neither
    is added by `encode`. Byte-level BPE runs through tiktoken where that gave the same ids on a sample; SentencePiece
    models that `tokenizers` can't do exactly run through the package `sentencepiece`, and their `tokenizer.json` is near.

    Attributes:
        end: id that ends a document.
        begin: id a document's first token is predicted from; `end` where there is no other.
        pad: id that fills rows; `end` where there is no other.
        vocabulary_size: one more than the highest id.
    """

    kind = "tokenizer"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        self.backend = read_definition(self.folder / FILE)
        notes = files.read_json(self.folder / NOTES) if (self.folder / NOTES).is_file() else {}
        if not notes:
            notes = guess_notes(self.backend, self.folder)
        self._pieces = None
        if "sentencepiece" in notes:
            notes["sentencepiece"] = str(self.folder / notes["sentencepiece"])
            self._pieces = SentencePieceEngine(Path(notes["sentencepiece"]))
        self.notes = notes
        self.end, self.begin, self.pad = int(notes["end"]), int(notes["begin"]), int(notes["pad"])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A tokenizer from a folder (ours or a Hugging Face one), whether it is a sealed artifact or not.

        Raises:
            DataError: there is no `tokenizer.json` in it, or it can't be read.
        """
        folder = Path(path)
        if (folder / MANIFEST).is_file() and json.loads((folder / MANIFEST).read_text()).get("kind") == cls.kind:
            return cls.open(folder)
        if not (folder / FILE).is_file():
            raise DataError(f"there is no {FILE} here", file=folder, mend="name a tokenizer's folder; the stage load_tokenizer reads single files")
        made = cls(folder, {"kind": cls.kind, "hash": "", "info": {}})
        made.manifest["hash"] = made.fingerprint
        return made

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The parsed `tokenizer.json`."""
        return definition_of(self.backend)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what `encode` does: token stores record it, and refuse another tokenizer's ids."""
        told = {key: value for key, value in self.definition.items() if key not in ("truncation", "padding", "version")}
        engine = [self._pieces.hash] if self._pieces else []
        text = json.dumps([told, self.end, self.begin, *engine], sort_keys=True, ensure_ascii=False)
        return xxhash.xxh3_128_hexdigest(text.encode())

    @cached_property
    def _bytes(self) -> list[bytes]:
        return token_bytes(self.definition)

    @cached_property
    def _fast(self) -> FastBPE | None:
        return FastBPE.of(self.definition) if self.notes.get("fast") else None

    @property
    def fast(self) -> bool:
        """Whether `encode` runs through tiktoken."""
        return bool(self.notes.get("fast"))

    @property
    def engine(self) -> str:
        """What encodes: "tiktoken", "sentencepiece" or "tokenizers"."""
        return "sentencepiece" if self._pieces else "tiktoken" if self.fast else "tokenizers"

    @property
    def vocabulary_size(self) -> int:
        return len(self._bytes)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The special tokens, by their text."""
        return {entry["content"]: entry["id"] for entry in self.definition.get("added_tokens") or [] if entry["special"]}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, without begin or end.

        Args:
            special: read special tokens written in the text as such (chat templates want this); documents must not.
        """
        return self.encode_array(text, special=special).tolist()

    def encode_array(self, text: str, *, special: bool = False) -> np.ndarray[Any, Any]:
        """`encode` as an int64 array, which is cheaper for long texts."""
        if not text.isascii() and _has_surrogate(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self._pieces is not None:
            return np.array(self._pieces.encode(text, self.special_ids if special else {}), dtype=np.int64)
        if self._fast is not None and not special:
            try:
                return self._fast.encode(text)
            except ValueError:
                pass  # too deep for its regular expressions; the other engine can
        self.backend.encode_special_tokens = not special
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_documents(self, texts: Sequence[bytes]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Many documents at once, the fastest way.

        Args:
            texts: documents in UTF-8.

        Returns:
            their ids one after the other, each document's followed by `end`, and each document's number of ids with it.
        """
        if self._fast is not None:
            try:
                return self._fast.encode_documents(texts, self.end)
            except ValueError:
                pass  # too deep for its regular expressions; one by one, only the text in question is slow
        parts = [np.append(self.encode_array(text.decode()), self.end) for text in texts]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts]), np.array([len(part) for part in parts], dtype=np.int64)

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """`encode` for each text."""
        if self._pieces is not None or (self._fast is not None and not special):
            return [self.encode(text, special=special) for text in texts]
        self.backend.encode_special_tokens = not special
        return [each.ids for each in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            special: write special tokens out.
        """
        if self._pieces is not None:
            return self._pieces.decode(ids, self.special_ids if special else {})
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def bytes_of(self, id: int) -> bytes:
        """The bytes a token stands for in running text; none for special tokens.

        Raises:
            IndexError: the vocabulary has no such id.
        """
        return self._bytes[id]

    def byte_lengths(self) -> np.ndarray[Any, Any]:
        """int32 [vocabulary]: how many bytes each id stands for."""
        return np.array([len(each) for each in self._bytes], dtype=np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` (both as AutoTokenizer reads them) and our notes."""
        write_tokenizer(Path(folder), self.backend, self.notes)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def write_tokenizer(folder: Path, backend: Any, notes: dict[str, Any]) -> None:
    """Writes a tokenizer's files, each whole or not at all.

    Args:
        backend: the `tokenizers` tokenizer.
        notes: `end`, `begin`, `pad` (ids), `fast` (tiktoken gave the same ids), `sentencepiece` (the model file that
            encodes instead; it is copied).
    """
    if "sentencepiece" in notes:
        files.write(folder / MODEL, Path(notes["sentencepiece"]).read_bytes())
        notes = notes | {"sentencepiece": MODEL}
    files.write(folder / FILE, backend.to_str(pretty=True))
    named = {"eos_token": notes["end"], "bos_token": notes["begin"], "pad_token": notes["pad"]}
    config: dict[str, Any] = {key: backend.id_to_token(value) for key, value in named.items()}
    unknown = (definition_of(backend)["model"]).get("unk_token")
    if unknown:
        config["unk_token"] = unknown
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 1 << 30}
    files.write_json(folder / CONFIG, config)
    files.write_json(folder / NOTES, notes)


def read_definition(file: Path) -> Any:
    """The `tokenizers` tokenizer in a `tokenizer.json`, with truncation and padding switched off.

    Raises:
        DataError: it is missing, no JSON, or no tokenizer.
    """
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read: {error}", file=file) from None
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"is no tokenizer.json: {error}", file=file, mend="export it again from the library that made it") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def guess_notes(backend: Any, folder: Path | None = None, *, end: str | None = None, pad: str | None = None) -> dict[str, Any]:
    """Which ids end, begin and pad, from `tokenizer_config.json` beside it or from the usual names; and the fast path.

    Raises:
        DataError: no token looks like the end of a document, or the one named isn't there.
    """
    told: dict[str, Any] = {}
    if folder is not None and (folder / CONFIG).is_file():
        read = files.read_json(folder / CONFIG)
        told = {key: value.get("content") if isinstance(value, dict) else value for key, value in read.items() if key.endswith("_token")}
    ending = _first_id(backend, [end] if end else [told.get("eos_token"), *_ENDS])
    if ending is None:
        problem = f"the vocabulary has no token {end!r}" if end else "no token of the vocabulary looks like the end of a document"
        raise DataError(problem, file=folder, key="end", mend='name it, for example end = "</s>"')
    beginning = _first_id(backend, [told.get("bos_token"), *_BEGINS])
    padding = _first_id(backend, [pad] if pad else [told.get("pad_token"), *_PADS])
    if pad and padding is None:
        raise DataError(f"the vocabulary has no token {pad!r}", file=folder, key="pad")
    notes = {"end": ending, "begin": ending if beginning is None else beginning, "pad": ending if padding is None else padding}
    return notes | {"fast": is_fast(backend)}


def _first_id(backend: Any, names: Iterable[str | None]) -> int | None:
    return next((found for name in names if name and (found := backend.token_to_id(name)) is not None), None)


def is_fast(backend: Any, texts: Sequence[str] = ()) -> bool:
    """Whether tiktoken gives the ids this tokenizer gives, on `texts` and on a sample of awkward ones."""
    definition = definition_of(backend)
    fast = FastBPE.of(definition)
    special = {entry["content"] for entry in definition.get("added_tokens") or []}
    sample = [text for text in [*AWKWARD, *texts] if not any(token in text for token in special)]
    return fast is not None and fast.agrees(backend, sample)


AWKWARD = (
    "",
    " ",
    "  \n\n \t x\r\n\r\n",
    "Hello, world! It's 1234567890 o'clock; WE'LL SEE.",
    "def f(x):\n    return x**2  # naïve café\n",
    "日本語のテキスト、한국어, العربية, हिन्दी, עברית, ไทย",
    "🙂👩‍👩‍👧‍👦 ½ ² Ⅷ ſ ǅ e\u0301 \u00a0\u2003\u3000 \ufeff \u200b",
    "https://example.org/a?b=c&d=%20#e <tag attr='1'/> {\"k\": [1.5e-7, null]}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "----====____****####....!!!!????\\\\////~~~~\x00\x01\x7f",
)
