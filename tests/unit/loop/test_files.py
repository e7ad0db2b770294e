from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from trainer.errors import StorageError
from trainer.files import remove_unfinished, storage_faults, write_atomically


def test_content_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "old")
    write_atomically(path, "nöw")
    assert path.read_text(encoding="utf-8") == "nöw"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_has_the_mode_of_an_ordinary_one(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EPERM, errno.EFBIG]
)
def test_a_disk_fault_keeps_the_old_file_and_names_the_path(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"file\.txt") as caught:
        write_atomically(path, "new")
    assert caught.value.exit_code == 8
    assert caught.value.hints
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow_is_a_disk_fault(tmp_path: Path) -> None:
    """The limit of `ulimit -f`, from the operating system itself."""
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StorageError, match="a file has reached its largest size"):
            write_atomically(path, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file.txt", "old")
    with monkeypatch.context() as killed:
        # As a kill does: nothing after the write is done.
        killed.setattr(Path, "replace", lambda *_: None)
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        write_atomically(tmp_path / "file.txt", "new")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    remove_unfinished(tmp_path / "missing")


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_faults(tmp_path):
        (tmp_path / "missing").read_text()
