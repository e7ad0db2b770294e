"""Units to shards by any number of processes and nodes: the same bytes, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

import trainer.data.build.assembly as assembly
import trainer.data.prepare as prepare_module
from tests.helpers.held_out import split_document
from tests.house.checks import ROOT
from tests.unit.data.build_fixtures import UNIT_BYTES, built, content, corpus, text, wanted
from tests.unit.data.data_fixtures import stream, write_text
from trainer.data.build.meter import Meter
from trainer.data.build.run import do_units
from trainer.data.build.schedule import Share
from trainer.data.build.unit_result import Facts, UnitResult
from trainer.data.build.work_folder import LOST_S, SPOOL, WorkFolder
from trainer.data.build.worker import read_so_far
from trainer.data.prepare import prepare
from trainer.data.tokenizer import load_tokenizer
from trainer.progress import PREPARING, current

PATIENCE_S = 100
BUILD = (
    "import sys; from tests.unit.data.build_fixtures import *; "
    "built(wanted(Path(sys.argv[1]), sys.argv[2], **eval(sys.argv[3])), node=Share(*eval(sys.argv[4])))"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpus(folder)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, bytes]:
    return content(built(wanted(place, "one", data__workers=1)).folder)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(place: Path, expected: dict[str, bytes], workers: int) -> None:
    prepared = built(wanted(place, f"by{workers}", data__workers=workers))
    assert content(prepared.folder) == expected
    assert sorted(path.name for path in (place / f"by{workers}").iterdir()) == [
        prepared.fingerprint,
        f"{prepared.fingerprint}.lock",
    ]


def test_it_is_what_one_process_made_of_whole_documents(tmp_path: Path) -> None:
    texts = [text(number, 3 + number * 37 % 90) for number in range(300)]
    for first in (0, 100, 200):
        rows = "".join(json.dumps({"text": one}) + "\n" for one in texts[first : first + 100])
        write_text(tmp_path / f"{first:03d}.jsonl", rows)
    prepared = built(wanted(tmp_path, "cache", tokenizer__kind="bpe", tokenizer__vocab_size=300))
    assert prepared.tokenizer_folder is not None
    used = load_tokenizer(prepared.tokenizer_folder)
    for part, is_out in (("train", False), ("validation", True)):
        pieces = [piece for one in texts for held_out, piece in split_document(one, 0.2) if held_out == is_out]
        assert stream(prepared, part).tolist() == [i for piece in pieces for i in (*used.encode(piece), used.eos_id)]
        assert prepared.manifest.parts[part][0].documents == len(pieces)
        assert prepared.manifest.parts[part][0].text_bytes == sum(len(piece.encode()) for piece in pieces)


def started(place: Path, cache: str, node: tuple[int, int] = (0, 1), **values: object) -> subprocess.Popen[bytes]:
    """Start a build in a process of its own."""
    arguments = [sys.executable, "-c", BUILD, str(place), cache, repr(values), repr(node)]
    return subprocess.Popen(arguments, cwd=ROOT)


def finished(cache: Path) -> list[Path]:
    return [path for path in cache.glob(".*.work/u*") if path.suffix != SPOOL]


def killed_and_ended(place: Path, expected: dict[str, bytes], cache: str, kills: int) -> None:
    draw = random.Random(kills)
    for kill in range(kills):
        process = started(place, cache, data__workers=2)
        # At some file more than there were, and a moment later.
        wanted_files = len(finished(place / cache)) + draw.randrange(1, max(2, 60 // kills))
        while process.poll() is None and len(finished(place / cache)) < wanted_files:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.01))
        process.kill()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL or kill > 1
    before = {path: path.stat().st_mtime_ns for path in finished(place / cache)}
    said: list[str] = []
    with mock.patch.object(prepare_module, "do_units", noted := NotedUnits()):
        prepared = prepare(wanted(place, cache, data__workers=2), said.append)
    assert content(prepared.folder) == expected
    assert [path.suffix for path in (place / cache).glob(".*")] == []
    # What was finished is not done again.
    assert {path: noted.times.get(path) for path in before} == before


class NotedUnits:
    """Does the units, and notes when each was finished."""

    def __init__(self) -> None:
        self.times: dict[Path, int] = {}

    def __call__(self, *arguments: Any) -> Any:
        places = partial(do_units, unit_bytes=UNIT_BYTES)(*arguments)
        self.times = {path: path.stat().st_mtime_ns for path in arguments[1].path.iterdir()}
        return places


def test_kills_change_nothing(place: Path, expected: dict[str, bytes]) -> None:
    killed_and_ended(place, expected, "killed", 3)


@pytest.mark.slow
def test_many_kills_change_nothing(place: Path, expected: dict[str, bytes]) -> None:
    killed_and_ended(place, expected, "killed_often", 20)


def test_a_kill_while_shards_are_put_together(place: Path, expected: dict[str, bytes]) -> None:
    def die(*_arguments: object) -> NoReturn:
        # What a signal is answered with.
        assert current().phase == PREPARING
        raise KeyboardInterrupt

    with mock.patch.object(assembly, "_write_text", die), pytest.raises(KeyboardInterrupt):
        built(wanted(place, "half", data__workers=1))
    said: list[str] = []
    with mock.patch.object(prepare_module, "do_units", NotedUnits()):
        prepared = prepare(wanted(place, "half", data__workers=1), said.append)
    assert content(prepared.folder) == expected
    assert said[-1].startswith("data    goes on: ")
    total = said[-1].split()[5]
    assert said[-1] == f"data    goes on: {total} of {total} units are finished"


def test_two_nodes_at_once(place: Path, expected: dict[str, bytes]) -> None:
    # Two processes of each: one of them builds, and the other one waits.
    nodes = [started(place, "nodes", (node, 2), data__workers=1) for node in (0, 1, 0, 1)]
    try:
        assert [node.wait(PATIENCE_S) for node in nodes] == [0] * 4
    finally:
        for node in nodes:
            node.kill()
    prepared = built(wanted(place, "nodes"))
    assert content(prepared.folder) == expected
    assert not list((place / "nodes").glob(".*"))


def test_a_node_alone_does_the_share_of_the_others(place: Path, expected: dict[str, bytes]) -> None:
    prepared = built(wanted(place, "alone", data__workers=2), node=Share(1, 3))
    assert content(prepared.folder) == expected


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    beat = "import sys; from trainer.data.build.work_folder import *; WorkFolder(Path(sys.argv[1])).beat(1); input()"
    process = subprocess.Popen([sys.executable, "-c", beat, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE)
    work, mark = WorkFolder(tmp_path), tmp_path / "node1.alive"
    work.beat(0)
    try:
        while not mark.exists() or not mark.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        assert work.lives(1, 0)
    finally:
        process.kill()
        process.communicate()
    assert not work.lives(1, 0)
    # Nothing is known of another machine's processes, but for their last sign of life.
    mark.write_text("elsewhere " + mark.read_text().partition(" ")[2])
    assert work.lives(1, 0)
    os.utime(mark, (time.time() - LOST_S - 1,) * 2)
    assert not work.lives(1, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_process_and_no_half_file(tmp_path: Path, number: int) -> None:
    rows = "".join(json.dumps({"text": text(number, 3000)}) + "\n" for number in range(100))
    write_text(tmp_path / "a.jsonl", rows * 20)
    words = [f"data.files=[{tmp_path}/a.jsonl]", f"data.cache_dir={tmp_path}/cache", "data.workers=2"]
    command = [sys.executable, "-m", "trainer", "data", "data=files", "tokenizer=bytes", *words]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and len(members(process.pid)) < 3:
            time.sleep(0.01)
        # Ctrl-C goes to all processes of the terminal.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE_S)
    finally:
        left = members(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    assert left == []
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[signal.Signals(number)]
    assert "Traceback" not in told
    assert "while preparing the data" in told
    assert all(UnitResult.open(path) is not None for path in finished(tmp_path / "cache"))


def members(session: int) -> list[int]:
    """Return the processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = path.read_text().rpartition(")")[2].split()
            if int(words[3]) == session and words[0] != "Z":
                found.append(int(path.parent.name))
    return found


def test_how_far_it_is() -> None:
    said: list[str] = []
    now = [0.0]
    meter = Meter(said.append, [1000, 3000], lambda: now[0])
    now[0] = 20.0
    meter.tell()
    assert said == []
    meter.note(Facts(1, 5000, 4_000_000, 0, 0, is_open=False))
    meter.note_read(1, 1000)
    meter.tell()
    meter.tell()
    assert said == ["data    5,000 tokens of 4 MB of text, 250 tokens/s, 25%, 1 min left"]
    meter.note_size(1, 3000)
    now[0] = 60.0
    meter.tell()
    assert said[1:] == ["data    5,000 tokens of 4 MB of text, 83 tokens/s, 75%, 20 s left"]
    assert Meter(said.append, [None, 5], lambda: now[0]).line() == "data    0 tokens of 0 MB of text, 0 tokens/s"


def test_the_place_in_a_file_that_is_read(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a", "x" * 100)
    assert read_so_far(str(path)) is None
    with path.open("rb", buffering=0) as file:
        file.read(40)
        assert read_so_far(str(path)) == 40
        assert read_so_far(str(path), tmp_path) is None
