"""What the tests of the parallel build share: small units, and folders compared byte for byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import trainer.data.prepare as prepare_module
from tests.unit.data.data_fixtures import config, write_text
from trainer.config.schema import TridentConfig
from trainer.data.build.run import do_units
from trainer.data.build.schedule import ALONE, Share
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData

UNIT_BYTES = 4000
WORDS = ["one", "größer", "🙂", "two", "three\nfour", "", "five", "six_seven", "eight\t9", "10\n"]


def text(number: int, words: int) -> str:
    """Return a text that differs from others."""
    return f"document {number}: " + " ".join(WORDS[(number * 7 + index * index) % len(WORDS)] for index in range(words))


def lines(numbers: Iterator[int] | range) -> str:
    """Return documents of different lengths as lines of JSON."""
    return "".join(json.dumps({"text": text(number, 3 + number * 37 % 90)}) + "\n" for number in numbers)


def corpus(folder: Path) -> list[Path]:
    """Write files of all kinds of units: small ones that share one, divisible ones, and one that is fed."""
    long = "".join(f"line {number} of one long file, {text(number, 6)}\n" for number in range(700))
    (folder / "fed.jsonl.gz").write_bytes(gzip.compress(lines(range(500, 900)).encode()))
    return [
        write_text(folder / "a.jsonl", lines(range(200))),
        *(write_text(folder / f"small{number}.txt", text(number, 40)) for number in range(30)),
        write_text(folder / "long.txt", long),
        folder / "fed.jsonl.gz",
    ]


def wanted(folder: Path, cache: str, **values: object) -> TridentConfig:
    """Return the config of the files in a folder with a cache of its own."""
    keys: dict[str, object] = {"tokenizer__kind": "bytes", "data__validation_fraction": 0.2} | values
    files = [str(folder / name) for name in ("*.jsonl", "*.txt", "*.gz") if list(folder.glob(name))]
    return config(**({"data__source": "files", "data__files": files, "data__cache_dir": str(folder / cache)} | keys))


def built(asked: TridentConfig, unit_bytes: int = UNIT_BYTES, node: Share = ALONE) -> PreparedData:
    """Prepare in units of some bytes."""
    with mock.patch.object(prepare_module, "do_units", partial(do_units, unit_bytes=unit_bytes)):
        return prepare(asked, node=node)


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
