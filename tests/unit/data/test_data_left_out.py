"""What is left out of the tokens, and told: bad records, copies, the test part, and documents behind a number."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

import trainer.data.build.processes as processes
import trainer.data.prepare as prepare_module
from tests.helpers.held_out import split_document
from tests.unit.data.build_fixtures import UNIT_BYTES, built, content, corpus, lines, text, wanted
from tests.unit.data.data_fixtures import stream, told, write_text
from trainer.config.schema import TridentConfig
from trainer.corpus.read import documents
from trainer.data.build.chosen import Places
from trainer.data.build.run import do_units
from trainer.data.build.work_folder import WorkFolder
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData, Source
from trainer.data.told import told_left_out
from trainer.errors import OutOfMemoryError, PeerLostError, TridentError


def decoded(prepared: PreparedData, part: str = "train") -> list[str]:
    """Return the texts of a part, whose tokenizer is that of bytes."""
    shards = prepared.manifest.parts[part]
    assert len(shards) == 1
    ids = stream(prepared, part)
    return [piece.decode() for piece in split_at(ids.tolist())]


def split_at(ids: list[int]) -> list[bytes]:
    found, piece = [], bytearray()
    for one in ids:
        if one == 256:
            found.append(bytes(piece))
            piece = bytearray()
        else:
            piece.append(one)
    return found


EMPTY = '{"text": ""}\n{"text": null}\n\n'
BAD = '{"text": "broken\n{"other": "field"}\n{"text": 7}\n'


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_are_left_out_and_listed(tmp_path: Path, workers: int) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(100)) + BAD + EMPTY + lines(range(100, 200)))
    (tmp_path / "b.txt").write_bytes(b"no \xff utf-8")
    good = wanted(tmp_path, "cache", data__workers=workers, data__on_bad_record="skip", data__validation_fraction=0)
    prepared = built(good)
    assert decoded(prepared) == [text(number, 3 + number * 37 % 90) for number in range(200)]
    listed = [json.loads(line) for line in (prepared.folder / "skipped.jsonl").read_text().splitlines()]
    assert prepared.manifest.counts.skipped == len(listed) == 4
    assert prepared.manifest.counts.read == 200
    assert prepared.manifest.counts.empty == 2
    assert [one["excerpt"][:8] for one in listed[:1]] == ['{"text":']
    assert str(tmp_path / "a.jsonl") in listed[0]["where"]
    assert "UTF-8" in listed[3]["why"]
    assert told_left_out(prepared) == (
        f"data    4 records are left out since they are bad ({prepared.folder}/skipped.jsonl lists them)"
    )
    blend = replace(
        prepared, folder=tmp_path, sources=(Source("a", good.data, prepared), Source("b", good.data, prepared))
    )
    listed_twice = f"{prepared.folder}/skipped.jsonl"
    assert told_left_out(blend) == (
        f"data    4 records are left out since they are bad ({listed_twice} and {listed_twice} list them)"
    )


def test_the_rest_of_a_file_that_breaks_off_is_left_out(tmp_path: Path) -> None:
    content = "".join(f"line {number}\n" for number in range(300_000)).encode() + b"\xff"
    (tmp_path / "a.txt").write_bytes(content)
    write_text(tmp_path / "b.txt", "whole")
    asked = wanted(tmp_path, "cache", data__workers=1, data__on_bad_record="skip", data__validation_fraction=0)
    assert len(content) > 2 << 20
    prepared = built(asked, unit_bytes=16 << 20)
    assert decoded(prepared) == ["whole"]
    assert prepared.manifest.counts.skipped == 1


def test_of_a_long_text_the_unit_with_the_fault_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.corpus.separated.BLOCK_BYTES", 100)
    content = "".join(f"line {number}\n" for number in range(2000)).encode()[: 4 * UNIT_BYTES]
    keys: dict[str, object] = {"data__workers": 1, "data__on_bad_record": "skip", "data__validation_fraction": 0}
    for unit in range(4):
        fault = (unit + 1) * UNIT_BYTES - 500
        (tmp_path / "a.txt").write_bytes(content[:fault] + b"\xff" + content[fault + 1 :])
        prepared = built(wanted(tmp_path, f"cache{unit}", **keys))
        left = content[: unit * UNIT_BYTES] + content[(unit + 1) * UNIT_BYTES :]
        # Behind the fault of the last unit nothing is left that could be a part of the text.
        assert "".join(decoded(prepared)).encode() == left
        assert prepared.manifest.counts.skipped == prepared.manifest.counts.read == 1


def test_a_long_document_with_a_fault_is_none_of_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.corpus.separated.BLOCK_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(b"word " * 200 + b"\xff|one|two|three")
    keys: dict[str, object] = {"data__on_bad_record": "skip", "data__document_separator": "|"}
    asked = wanted(tmp_path, "cache", data__max_documents=2, data__validation_fraction=0, **keys)
    assert decoded(built(asked)) == ["one", "two"]


@pytest.mark.parametrize("skips", [False, True])
def test_a_long_compressed_text_that_breaks_off_is_a_bad_record(tmp_path: Path, skips: bool) -> None:
    content = gzip.compress(random.Random(1).randbytes(600_000).hex().encode())
    (tmp_path / "a.txt.gz").write_bytes(content[: len(content) - 1000])
    write_text(tmp_path / "b.txt", "whole")
    asked = wanted(tmp_path, "cache", data__on_bad_record="skip" if skips else "error", data__validation_fraction=0)
    if not skips:
        assert "a.txt.gz" in told(lambda: built(asked, unit_bytes=16 << 20))
        return
    prepared = built(asked, unit_bytes=16 << 20)
    assert decoded(prepared) == ["whole"]
    assert prepared.manifest.counts.skipped == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_record_is_an_error_and_keeps_what_is_done(tmp_path: Path, workers: int) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(200)) + BAD)
    keys: dict[str, object] = {"data__workers": workers, "data__validation_fraction": 0}
    said = told(lambda: built(wanted(tmp_path, "cache", **keys)))
    assert str(tmp_path / "a.jsonl") in said
    work = next((tmp_path / "cache").glob(".*.work"))
    done = {path: path.stat().st_mtime_ns for path in work.glob("u*")}
    assert done
    said_then: list[str] = []
    asked = wanted(tmp_path, "cache", data__on_bad_record="skip", **keys)
    with mock.patch.object(prepare_module, "do_units", partial(do_units, unit_bytes=UNIT_BYTES)):
        prepared = prepare(asked, said_then.append)
    assert len(decoded(prepared)) == 200
    assert said_then[-1].startswith(f"data    goes on: {len(done)} of ")


def test_results_with_skipped_records_do_not_count_as_good(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(200)) + BAD)
    keys: dict[str, object] = {"data__workers": 1, "data__validation_fraction": 0}

    def die(*_arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    with mock.patch("trainer.data.build.assembly._write_text", die), pytest.raises(KeyboardInterrupt):
        built(wanted(tmp_path, "cache", data__on_bad_record="skip", **keys))
    assert str(tmp_path / "a.jsonl") in told(lambda: built(wanted(tmp_path, "cache", **keys)))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_document_that_breaks_off_is_passed_over_where_a_build_goes_on(tmp_path: Path, workers: int) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(100)))
    # Longer than what is read of a file before its text counts as a document.
    long = "".join(f"line {number}\n" for number in range(300_000)).encode() + b"\xff"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(long))
    asked = wanted(tmp_path, "cache", data__workers=workers, data__on_bad_record="skip", data__validation_fraction=0)

    def die(*_arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    with mock.patch("trainer.data.build.assembly._write_text", die), pytest.raises(KeyboardInterrupt):
        built(asked)
    # As if the kill had come before the end of the file was reached.
    for path in (tmp_path / "cache").glob(".*.work/u*.blocks"):
        path.unlink()
    prepared = built(asked)
    assert len(decoded(prepared)) == 100
    assert prepared.manifest.counts.skipped == 1


def test_the_two_answers_to_bad_records_do_not_disturb_each_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(200)))
    keys: dict[str, object] = {"data__workers": 1, "data__validation_fraction": 0}
    skipping = wanted(tmp_path, "cache", data__on_bad_record="skip", **keys)
    built(skipping)

    def with_the_other(config: TridentConfig, work: WorkFolder, *rest: Any, **more: Any) -> Places:
        places = do_units(config, work, *rest, **more)
        prepare(skipping)
        assert work.finished()[0]
        return places

    with mock.patch.object(prepare_module, "do_units", with_the_other):
        assert len(decoded(prepare(wanted(tmp_path, "cache", **keys)))) == 200
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_copies_are_left_out(tmp_path: Path, workers: int) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(50)) + lines(range(20, 70)))
    long = "".join(f"line {number} of one long file\n" for number in range(600))
    for name in ("b", "c"):
        write_text(tmp_path / f"{name}.txt", long)
    write_text(tmp_path / "d.txt", long[:12_000])
    asked = wanted(tmp_path, "cache", data__workers=workers, data__dedup="exact", data__validation_fraction=0)
    prepared = built(asked)
    first = [text(number, 3 + number * 37 % 90) for number in range(70)]
    assert decoded(prepared) == [*first, long, long[:12_000]]
    counts = prepared.manifest.counts
    assert (counts.read, counts.duplicates) == (103, 31)
    assert told_left_out(prepared) == "data    31 of 103 documents are left out since they are copies"
    assert prepared.manifest.parts["train"][0].text_bytes == sum(len(one.encode()) for one in decoded(prepared))


def test_a_test_part_moves_nothing_between_the_others(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(300)))
    plain = built(wanted(tmp_path, "plain", data__workers=1))
    both = built(wanted(tmp_path, "both", data__workers=1, data__test_fraction=0.3))
    assert decoded(plain, "validation") == decoded(both, "validation")
    assert sorted(decoded(plain)) == sorted([*decoded(both), *decoded(both, "test")])
    assert 50 < both.manifest.parts["test"][0].documents < 130
    assert plain.fingerprint != both.fingerprint


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("most", [1, 150, 231, 240, 10_000])
def test_only_the_first_documents(tmp_path: Path, most: int, workers: int) -> None:
    corpus(tmp_path)
    asked = wanted(tmp_path, "cache", data__workers=workers, data__max_documents=most, data__validation_fraction=0)
    assert decoded(built(asked)) == list(documents(asked.data))


def test_more_workers_than_processors_is_said(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "text")
    said: list[str] = []
    prepare(wanted(tmp_path, "cache", data__workers=1000, data__validation_fraction=0), said.append)
    assert said[-1].startswith("data    data.workers=1000 is more than the ")


def failing(kind: str) -> object:
    """Return a program of a worker that fails in some way while it encodes."""
    action = {
        "killed": f"os.kill(os.getpid(), {int(signal.SIGSEGV)})",
        "stuck": "time.sleep(1000)",
        "faulty": "1 / 0",
    }[kind]
    start = "import os, time; import trainer.data.build.worker as w; w.Worker._encode = lambda *_: " + action + "; "
    return processes._PROGRAM.replace("from trainer.data.build.worker import main; main(", start + "w.main(")


@pytest.mark.parametrize(
    ("kind", "error", "expected"),
    [
        ("killed", TridentError, "a process that tokenises must not end before its work, but one was ended by SIGSEGV"),
        (
            "stuck",
            PeerLostError,
            "a process that tokenises must go on within 1 s (runtime.timeout_s), but stands still",
        ),
        ("faulty", RuntimeError, "a process that tokenises failed"),
    ],
)
def test_a_worker_that_fails_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception], expected: str
) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(100)))
    monkeypatch.setattr(processes, "_PROGRAM", failing(kind))
    before = children()
    with pytest.raises(error) as caught:
        built(wanted(tmp_path, "cache", data__workers=2, runtime__timeout_s=1 if kind == "stuck" else 100))
    assert str(caught.value).startswith(expected)
    if isinstance(caught.value, TridentError):
        assert str(tmp_path / "a.jsonl") in str(caught.value)
    assert children() == before


def test_a_worker_that_the_kernel_ended_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.jsonl", lines(range(100)))
    monkeypatch.setattr(processes, "_PROGRAM", str(failing("killed")).replace(str(int(signal.SIGSEGV)), "9"))
    monkeypatch.setattr("trainer.machine.OomKills.hint", lambda _self: "the kernel has killed a process")
    with pytest.raises(OutOfMemoryError) as caught:
        built(wanted(tmp_path, "cache", data__workers=2))
    assert "but the kernel ended one for want of it while it read " in str(caught.value)
    assert str(caught.value).endswith("set data.workers to fewer")


def children() -> list[str]:
    return (Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split()


def test_chats_are_tokenised_by_processes_too(tmp_path: Path) -> None:
    rows = [{"prompt": text(number, 5), "completion": f" answer {number}"} for number in range(300)]
    rows[10] = {"prompt": "too long " * 60, "completion": " answer"}
    write_text(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text('{"prompt": "no completion"}\n')
    found = []
    for workers in (1, 2):
        asked = wanted(
            tmp_path,
            f"cache{workers}",
            data__workers=workers,
            data__records="prompt_completion",
            data__on_bad_record="skip",
            data__too_long="drop",
            model__seq_length=256,
        )
        prepared = built(asked)
        assert prepared.packed is not None
        assert (prepared.packed.examples, prepared.packed.dropped) == (299, 1)
        assert prepared.manifest.counts.skipped == 1
        found.append(content(prepared.folder))
    assert found[0] == found[1]


def test_pieces_of_a_long_text_are_split_as_before(tmp_path: Path) -> None:
    whole = "".join(f"line {number} of one long file\n" for number in range(3000))
    write_text(tmp_path / "a.txt", whole)
    prepared = built(wanted(tmp_path, "cache"), unit_bytes=16 << 20)
    for part, is_out in (("train", False), ("validation", True)):
        assert decoded(prepared, part) == [piece for out, piece in split_document(whole, 0.2) if out == is_out]
