"""Real text that is on every machine: sources and documents of Python's library and of the installed packages."""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

MEGABYTE = 1_000_000
_SUFFIXES = frozenset((".py", ".pyi", ".md", ".rst", ".txt", ".h"))
_LARGEST = MEGABYTE
"""Files that are larger are tables, and no text that a person wrote."""


def collected(most_bytes: int) -> list[str]:
    """Return the texts of files, in the order of their paths, until there are so many bytes of them."""
    texts: list[str] = []
    held = 0
    for path in _paths():
        if held >= most_bytes:
            break
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            texts.append(text)
            held += len(text.encode())
    return texts


def _paths() -> Iterator[Path]:
    roots = dict.fromkeys([sysconfig.get_paths()["stdlib"], *(path for path in sys.path if "packages" in path)])
    seen: set[Path] = set()
    for root in roots:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in _SUFFIXES and path not in seen and path.is_file() and path.stat().st_size <= _LARGEST:
                seen.add(path)
                yield path


def repeated(texts: Sequence[str], content_bytes: int) -> Iterator[str]:
    """Yield texts, each time all of them in another order, until there are so many bytes; the same on every call."""
    draws = random.Random(0)
    order = list(range(len(texts)))
    held = 0
    while True:
        draws.shuffle(order)
        for index in order:
            if held >= content_bytes:
                return
            held += len(texts[index].encode())
            yield texts[index]


def write_lines(texts: Sequence[str], path: Path, content_bytes: int) -> int:
    """Write JSON lines with so many bytes of text, and return the bytes of text."""
    held = 0
    with path.open("w", encoding="utf-8") as file:
        for text in repeated(texts, content_bytes):
            held += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return held


def write_document(texts: Sequence[str], path: Path, content_bytes: int) -> int:
    """Write a single text of so many bytes, and return them."""
    held = 0
    with path.open("w", encoding="utf-8") as file:
        for text in repeated(texts, content_bytes):
            held += len(text.encode())
            file.write(text)
    return held


def write_files(texts: Sequence[str], folder: Path, count: int) -> int:
    """Write so many small files, a thousand to a folder, and return their bytes."""
    held = 0
    joined = "".join(texts[:200])
    for number in range(count):
        if number % 1000 == 0:
            inner = folder / f"{number // 1000:04d}"
            inner.mkdir(parents=True)
        first = number * 977 % max(1, len(joined) - 2000)
        text = f"{number}\n{joined[first : first + 200 + number * 31 % 1800]}"
        held += (inner / f"{number:07d}.txt").write_bytes(text.encode())
    return held
