"""Memory, small files and speed of a build: the size of the input decides none of them but the time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.checks import ROOT
from tests.unit.data.build_fixtures import text
from trainer.corpus.units import UNIT_FILES

MIB = 1 << 20
FLAT = 1.10
"""Largest factor between the peaks of memory of a small and a large input."""
BUILD = """
import json, resource, sys
from pathlib import Path
from tests.unit.data.build_fixtures import wanted
from trainer.data.prepare import prepare
prepared = prepare(wanted(Path(sys.argv[1]), "cache", data__workers=2, **json.loads(sys.argv[2])))
# The peak of getrusage would be that of whoever started this process.
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
peaks = [int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
shards = [shard for part in prepared.manifest.parts.values() for shard in part]
print(json.dumps([*peaks, sum(shard.tokens for shard in shards), sum(shard.documents for shard in shards)]))
"""


def measured(place: Path, **values: object) -> tuple[float, float, int, int]:
    """Build in processes of its own; return the peaks of the parent and of a worker in MiB, tokens and documents."""
    arguments = [sys.executable, "-c", BUILD, str(place), json.dumps(values)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=True)
    parent, worker, tokens, documents = json.loads(ended.stdout.splitlines()[-1])
    return parent / 1024, worker / 1024, tokens, documents


def write_lines(path: Path, size: int) -> None:
    """Write documents of about 3 kB as lines of JSON."""
    rows = "".join(json.dumps({"text": text(number, 600)}) + "\n" for number in range(500))
    with path.open("w") as file:
        for _ in range(max(1, size // len(rows))):
            file.write(rows)


def write_document(path: Path, size: int) -> None:
    """Write one document."""
    lines = "".join(f"{text(number, 15)}\n" for number in range(5000))
    with path.open("w") as file:
        for _ in range(max(1, size // len(lines))):
            file.write(lines)


def check(found: dict[str, tuple[float, float]]) -> None:
    """Check that the larger input needs no more memory than the smaller one, in the parent and in a worker."""
    small, large = found.values()
    assert large[0] <= FLAT * small[0], found
    assert large[1] <= FLAT * small[1], found


def peaks(folder: Path, sizes: dict[str, int], **values: object) -> dict[str, tuple[float, float]]:
    found = {}
    for name, size in sizes.items():
        place = folder / name
        place.mkdir()
        if name.startswith("document"):
            write_document(place / "a.txt", size)
        elif name.startswith("line"):
            write_document(place / "a", size)
            with (place / "a.jsonl").open("w") as file:
                file.write('{"text": "')
                for row in (place / "a").open():
                    file.write(json.dumps(row)[1:-1])
                file.write('"}\n{"text": "short"}\n')
            (place / "a").unlink()
            write_lines(place / "b.jsonl", 40 * MIB)
        else:
            write_lines(place / "a.jsonl", size)
        parent, worker, tokens, _ = measured(place, **values)
        assert tokens > size // 8
        found[name] = (parent, worker)
        for path in place.glob("a*"):
            path.unlink()
    return found


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    check(peaks(tmp_path, {"small": 34 * MIB, "small large": 100 * MIB}))


def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    # A plain text of several units is held a unit at a time: it needs more than small documents do.
    check(peaks(tmp_path, {"document": 34 * MIB, "document large": 100 * MIB}))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_up_to_a_gigabyte(tmp_path: Path) -> None:
    keys = {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 2000}
    check(peaks(tmp_path, {"small": 34 * MIB, "small large": 1000 * MIB}, **keys))
    check(peaks(tmp_path, {"document": 34 * MIB, "document large": 500 * MIB}, **keys))
    check(peaks(tmp_path, {"line": 34 * MIB, "line large": 500 * MIB}, **keys))


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
