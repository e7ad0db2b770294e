"""Memory, small files and speed of a build: the size of the input decides none of them but the time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.checks import ROOT
from tests.unit.data.build_fixtures import text
from trainer.corpus.units import UNIT_BYTES, UNIT_FILES
from trainer.data.fast_encoding import WORTH_CHARACTERS
from trainer.data.tokenizer import train_bpe

MIB = 1 << 20
FLAT = 1.10
"""Largest factor between the peaks of memory of a small and a large input: what the same build differs by is 3 %."""
BUILD = """
import json, sys, threading, time
from functools import partial
from pathlib import Path
import trainer.data.prepare as prepare_module
from tests.unit.data.build_fixtures import wanted
from trainer.data.build.run import do_units
place, values, unit_bytes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
prepare_module.do_units = partial(do_units, unit_bytes=unit_bytes)
peaks, is_over = {}, threading.Event()

def look(process):
    # The peak of getrusage would be that of whoever started the process.
    rows = Path(f"/proc/{process}/status").read_text().splitlines()
    peaks[process] = max(int(row.split()[1]) for row in rows if row.startswith("VmHWM"))

def watch():
    while not is_over.wait(0.005):
        for process in Path("/proc/self/task").glob("*/children"):
            for child in process.read_text().split():
                try:
                    look(child)
                except (OSError, ValueError):
                    pass

watching = threading.Thread(target=watch)
watching.start()
try:
    prepared = prepare_module.prepare(wanted(place, "cache", data__workers=2, **values))
finally:
    is_over.set()
    watching.join()
look("self")
shards = [shard for part in prepared.manifest.parts.values() for shard in part]
own = peaks.pop("self")
tokens, documents = (sum(getattr(shard, name) for shard in shards) for name in ("tokens", "documents"))
print(json.dumps([own, max(peaks.values(), default=0), tokens, documents]))
"""


def measured(place: Path, unit_bytes: int = UNIT_BYTES, **values: object) -> tuple[float, float, int, int]:
    """Build in processes of its own; return the peaks of the parent and of a worker in MiB, tokens and documents."""
    arguments = [sys.executable, "-c", BUILD, str(place), json.dumps(values), str(unit_bytes)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=True)
    parent, worker, tokens, documents = json.loads(ended.stdout.splitlines()[-1])
    return parent / 1024, worker / 1024, tokens, documents


def write_lines(path: Path, size: int) -> None:
    """Write documents of some kB as lines of JSON."""
    rows = "".join(json.dumps({"text": text(number, 600)}) + "\n" for number in range(100))
    with path.open("w") as file:
        for _ in range(max(1, size // len(rows))):
            file.write(rows)


def write_document(path: Path, size: int) -> None:
    """Write one document."""
    lines = "".join(f"{text(number, 15)}\n" for number in range(5000))
    with path.open("w") as file:
        for _ in range(max(1, size // len(lines))):
            file.write(lines)


def write_line(path: Path, size: int) -> None:
    """Write one line of JSON with a short one behind it."""
    lines = json.dumps("".join(f"{text(number, 15)}\n" for number in range(5000)), ensure_ascii=False)[1:-1]
    with path.open("w") as file:
        file.write('{"text": "')
        for _ in range(max(1, size // len(lines))):
            file.write(lines)
        file.write('"}\n{"text": "short"}\n')


WRITE = {"small.jsonl": write_lines, "document.txt": write_document, "line.jsonl": write_line}


def check_flat(folder: Path, unit_bytes: int, few: int, sizes: dict[str, int]) -> None:
    """Check that the largest process of a large input is as large as that of a small one, which needs no workers."""
    keys = {"tokenizer__kind": "pretrained", "tokenizer__path": str(folder / "tokenizer")}
    (folder / "tokenizer").mkdir()
    train_bpe([text(number, 600) for number in range(100)], 2000).save(folder / "tokenizer")
    found: dict[str, tuple[float, float]] = {}
    for name, size in {"few.jsonl": few, **sizes}.items():
        place = folder / name.partition(".")[0]
        place.mkdir()
        WRITE.get(name, write_lines)(place / name, size)
        parent, worker, tokens, _ = measured(place, unit_bytes, **keys)
        assert tokens > size // 8
        assert (worker > 0) == (name != "few.jsonl")
        found[name] = (parent, worker)
        shutil.rmtree(place)
    base = max(found["few.jsonl"])
    assert all(max(peaks) <= FLAT * base for peaks in found.values()), found


def test_memory_does_not_grow_with_the_input_or_a_document(tmp_path: Path) -> None:
    # A process that encodes more looks for a faster encoder, which a small input does without.
    assert WORTH_CHARACTERS > 4_000_000
    check_flat(tmp_path, 1 * MIB, MIB // 2, dict.fromkeys(WRITE, 3_500_000))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_up_to_a_gigabyte(tmp_path: Path) -> None:
    sizes = dict(zip(WRITE, (1000 * MIB, 500 * MIB, 500 * MIB), strict=True))
    check_flat(tmp_path, UNIT_BYTES, 10 * MIB, sizes)


def many_files(folder: Path, count: int) -> None:
    for number in range(count):
        below = folder / f"{number // 1000:04d}"
        below.mkdir(exist_ok=True)
        (below / f"{number}.txt").write_text(f"small text {number}\n")


def test_many_small_files(tmp_path: Path) -> None:
    count = 2 * UNIT_FILES + 10
    many_files(tmp_path, count)
    _, _, _, documents = measured(tmp_path, data__files=[str(tmp_path / "*" / "*.txt")])
    assert documents == count


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_thousand_files(tmp_path: Path) -> None:
    many_files(tmp_path, 200_000)
    parent, worker, _, documents = measured(tmp_path, data__files=[str(tmp_path / "*" / "*.txt")])
    assert documents == 200_000
    # A path, its facts and its span, and the line of the manifest: about 2 kB a file.
    assert parent < 600
    assert worker < 300
