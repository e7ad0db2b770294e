"""The description of tokens on disk: shards, counts, hashes, and the tokenizer that made them. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from trainer.data.token_files import Packed
from trainer.files import write_atomically

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Shard:
    """One file of ids with its boundaries."""

    name: str
    """Path of the file, relative to the folder; absolute for a file that is read where it lies."""
    dtype: str
    """numpy's name of the ids' type; each shard has its own."""
    first_byte: int
    """Bytes before the first id: the header of another program's format."""
    tokens: int
    documents: int
    largest_id: int
    """-1 if there is no id."""
    text_bytes: int | None
    """Bytes of the texts in UTF-8; None where only ids are known."""
    blake2b: str
    """Hash of the ids as they are stored."""
    boundaries: str
    """Place that says where documents begin: idx, the Megatron index beside it; ends, a file of the cache; or none."""
    marks_blake2b: str | None = None
    """Hash of the marks of packed examples."""
    ends_blake2b: str | None = None
    """Hash of the number of tokens up to the end of each document, 8 bytes each; None where it is not known."""
    beside: str | None = None
    """Name, without suffix, of the files of the cache that describe a shard which is read where it lies."""
    is_scattered: bool = False
    """True if the shard has several stretches of its file; `EXTENTS` has their places."""

    def outside(self, folder: Path) -> Shard:
        """Return the shard of a folder as other folders name it: with absolute paths."""
        beside = None if self.beside is None else str(folder / self.beside)
        return replace(self, name=str(folder / self.name), beside=beside)


@dataclass(frozen=True)
class Counts:
    """Records of the source."""

    read: int = 0
    empty: int = 0
    skipped: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. It is written last: a folder without it is not whole."""

    name: str
    """Name of the source in blends and metrics."""
    tokenizer: str | None
    """Fingerprint of everything that decides the ids of a text; None for ids of an unknown tokenizer."""
    vocab_size: int
    eos_id: int | None
    parts: Mapping[str, tuple[Shard, ...]]
    counts: Counts
    inputs: tuple[str, ...]
    """Identities of the input files in the order in which they were read."""
    sizes: Mapping[str, int]
    """Bytes of every file of the folder, by its path in it."""
    packed: Packed | None = None
    format_version: int = FORMAT_VERSION

    def tokens(self, part: str) -> int:
        """Return the tokens of a part."""
        return sum(shard.tokens for shard in self.parts.get(part, ()))

    def content(self) -> str:
        """Return a hash of training and validation tokens; with one shard a part it is that of earlier versions."""
        found = []
        for part in PARTS[:2]:
            shards = self.parts.get(part, ())
            found.append(_joined([shard.blake2b for shard in shards]))
            if self.packed is not None:
                found.append(_joined([shard.marks_blake2b or "" for shard in shards]))
        return "-".join(found)

    def ends(self) -> str | None:
        """Return a hash of the places at which documents end; with one shard a part it is that of earlier versions.

        None if a shard does not say them.
        """
        found = [[shard.ends_blake2b for shard in self.parts.get(part, ())] for part in PARTS[:2]]
        known = [[one for one in hashes if one is not None] for hashes in found]
        return "-".join(_joined(hashes) for hashes in known) if known == found else None


def _joined(hashes: list[str]) -> str:
    if not hashes:
        return hashlib.blake2b(digest_size=16).hexdigest()
    return hashes[0] if len(hashes) == 1 else hashlib.blake2b("-".join(hashes).encode(), digest_size=16).hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and contents of all files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the description of a folder whose other files are complete.

    Raises:
        StorageError: the disk is full or read-only.
    """
    held = {key: value for key, value in asdict(manifest).items() if value is not None or key != "packed"}
    write_atomically(folder / MANIFEST, json.dumps(held, indent=1) + "\n", "data.cache_dir")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the description of a folder, or None unless every file of it is there in full size.

    Contents are not hashed: that would read every token at each start.
    """
    try:
        held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if held["format_version"] != FORMAT_VERSION:
            return None
        packed = held.pop("packed", None)
        found = Manifest(
            **{
                **held,
                "parts": {part: tuple(Shard(**shard) for shard in shards) for part, shards in held["parts"].items()},
                "counts": Counts(**held["counts"]),
                "inputs": tuple(held["inputs"]),
                "packed": None if packed is None else Packed(**packed),
            }
        )
        whole = all((folder / name).stat().st_size == size for name, size in found.sizes.items())
        whole = whole and all(_fits(folder, shard) for shards in found.parts.values() for shard in shards)
    # A damaged description can be any JSON or none.
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if whole else None


def _fits(folder: Path, shard: Shard) -> bool:
    """Return whether a file has the ids that are said of it; of one that is read where it lies, or more."""
    path, end = folder / shard.name, shard.first_byte + shard.tokens * np.dtype(shard.dtype).itemsize
    size = path.stat().st_size
    return size == end or (shard.beside is not None and size > end)
