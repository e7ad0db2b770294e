from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.batch_sizes import BatchSizes
from trainer.data.journal import Stretch, append_stretch, read_journal
from trainer.errors import StorageError

FIRST = Stretch(1, 0, "", 8, 8, "stream", BatchSizes(12, ((2, 4), (5, 6))))


def test_stretches_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, later = tmp_path / "ledger.jsonl", replace(FIRST, step=4, position=500, ledger="ab" * 16)
    assert read_journal(path) == []
    for stretch in (FIRST, later):
        append_stretch(path, stretch)
    assert read_journal(path) == [FIRST, later]


@given(cut=st.integers(0, 400))
@settings(deadline=None, max_examples=60)
def test_a_line_that_was_cut_off_spoils_no_other_one(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "ledger.jsonl"
    append_stretch(path, FIRST)
    whole = path.read_bytes()
    append_stretch(path, replace(FIRST, step=4))
    content = path.read_bytes()
    path.write_bytes(content[: max(len(whole), len(content) - cut)])
    is_whole = len(content) - cut >= len(content) - 1
    append_stretch(path, replace(FIRST, step=7))
    assert [one.step for one in read_journal(path)] == ([1, 4, 7] if is_whole else [1, 7])


@pytest.mark.parametrize(
    "line", ["", "null", "[]", "17", '"x"', "{}", '{"step": 0}', "\x00\xff", '{"step": 1, "sizes": null}']
)
def test_lines_of_something_else_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    append_stretch(path, FIRST)
    with path.open("a") as file:
        file.write(f"{line}\n")
    append_stretch(path, replace(FIRST, step=3))
    assert [one.step for one in read_journal(path)] == [1, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("step", 0), ("position", -1), ("seq_length", 0), ("sample_length", 0), ("position", 10**30)),
        ("sizes", BatchSizes(12, ((10**30, 4),))),
        ("segments", ({"first": 0, "seed": 1, "sources": [], "phases": []},)),
    ],
)
def test_a_count_that_cannot_be_is_left_out(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    append_stretch(path, replace(FIRST, **{name: value}))
    assert read_journal(path) == []


def test_the_place_of_a_step_follows_from_the_stretch() -> None:
    stretch = replace(FIRST, step=2, position=1000)
    sizes = [4, 6, 6, 6, 12, 12]
    assert [stretch.position_of(2 + count) for count in range(6)] == [
        1000 + 8 * sum(sizes[:count]) for count in range(6)
    ]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="No space left on device"):
        append_stretch(tmp_path / "ledger.jsonl", FIRST)
