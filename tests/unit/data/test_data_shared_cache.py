"""A cache that several users share: the second one builds, waits, reads, or takes over after a kill."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest

import trainer.data.prepare as prepare_module
import trainer.data.shared_cache as shared
from tests.unit.data.data_fixtures import config, told, write_text
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.errors import TridentError

GROUP = 54321
ALICE, BOB, STRANGER = (54322, GROUP), (54323, GROUP), (54324, 54329)
PATIENCE_S = 100
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    # The interpreter may lie where other users cannot read it.
    place = tmp_path_factory.mktemp("first")
    write_text(place / "a.txt", "some text")
    prepare(wanted(place))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user can reach; those of pytest are private."""
    folder = Path(tempfile.mkdtemp(prefix="trident_shared_"))
    folder.chmod(0o755)
    write_text(folder / "a.txt", "some text to train on\n" * 40).chmod(0o644)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def cache(place: Path, mode: int, owner: tuple[int, int] = (0, GROUP)) -> Path:
    folder = place / "cache"
    folder.mkdir(exist_ok=True)
    os.chown(folder, *owner)
    folder.chmod(mode)
    return folder


def wanted(place: Path) -> TridentConfig:
    return config(
        data__source="files",
        data__files=[str(place / "a.txt")],
        data__cache_dir=str(place / "cache"),
        tokenizer__kind="bytes",
    )


def start(user: tuple[int, int], action: Callable[[], object], umask: int = 0o022) -> tuple[int, int]:
    """Run something as a user in a process of its own; return its id and where it says how that went."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    answer = ""
    try:
        os.setgroups([user[1]])
        os.setgid(user[1])
        os.setuid(user[0])
        os.umask(umask)
        answer = str(action())
    except TridentError as error:
        answer = f"{type(error).__name__}: {error}"
    except BaseException:
        answer = traceback.format_exc()
    finally:
        os.write(writer, answer.encode())
        os._exit(0)


def ended(process: tuple[int, int]) -> str:
    pid, reader = process
    with os.fdopen(reader, encoding="utf-8") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


def build(place: Path, said: list[str] | None = None) -> str:
    """Prepare, and return `built` or `found` and how many tokens there are."""
    lines: list[str] = [] if said is None else said
    prepared = prepare(wanted(place), lines.append)
    return f"{'built' if any('tokenising' in line for line in lines) else 'found'} {prepared.train_tokens}"


def as_user(user: tuple[int, int], place: Path, umask: int = 0o022) -> str:
    return ended(start(user, lambda: build(place), umask))


def leave_half(place: Path) -> NoReturn:
    """Die while building, as `kill -9` does it."""

    def die(*_args: object) -> NoReturn:
        os._exit(0)

    with mock.patch.object(prepare_module, "write_manifest", die):
        prepare(wanted(place))
    raise AssertionError


def entries(folder: Path) -> list[str]:
    return sorted(path.name.rpartition(".")[2] for path in folder.iterdir() if path.name.startswith(".") or path.suffix)


@needs_root
@pytest.mark.parametrize("mode", [0o2777, 0o777, 0o2770, 0o770, 0o1777])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_one_user_built_another_one_reads(open_place: Path, mode: int, umask: int) -> None:
    cache(open_place, mode)
    assert as_user(ALICE, open_place, umask) == "built 881"
    assert as_user(BOB, open_place, umask) == "found 881"
    if mode & 0o007:
        assert as_user(STRANGER, open_place, umask) == "found 881"


@needs_root
@pytest.mark.parametrize("mode", [0o2777, 0o777, 0o2770, 0o1777])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_another_user_takes_over_after_a_kill(open_place: Path, mode: int, umask: int) -> None:
    folder = cache(open_place, mode)
    ended(start(ALICE, lambda: leave_half(open_place), umask))
    assert entries(folder) == ["lock", "partial", "work"]
    said: list[str] = []
    assert ended(start(BOB, lambda: f"{build(open_place, said)}, {said[-1]}", umask)) == (
        "built 881, data    goes on: 1 of 1 units are finished"
    )
    # A sticky folder keeps what is another user's.
    assert entries(folder) == (["lock", "partial", "work"] if mode & stat.S_ISVTX else ["lock"])
    assert not any(path.is_file() for path in folder.glob(".*.work/*"))
    assert as_user(ALICE, open_place) == "found 881"


@needs_root
def test_the_lock_of_a_version_that_kept_others_out(open_place: Path) -> None:
    folder = cache(open_place, 0o2777)
    assert as_user(ALICE, open_place) == "built 881"
    lock = next(folder.glob("*.lock"))
    for mode in (0o644, 0o600):
        shutil.rmtree(next(path for path in folder.iterdir() if path.is_dir()))
        lock.chmod(mode)
        assert as_user(BOB, open_place) == "built 881"


@needs_root
def test_another_user_waits(open_place: Path) -> None:
    cache(open_place, 0o2777)
    begun, (go, gone) = os.pipe(), os.pipe()

    def slowly() -> str:
        def say(text: str) -> None:
            os.write(begun[1], b"x")
            os.read(go, 1)

        return f"built {prepare(wanted(open_place), say).train_tokens}"

    def waits() -> str:
        shared.PATIENCE_S = 0
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            os.write(gone, b"x")

        prepare(wanted(open_place), say)
        return " ".join(said)

    first = start(ALICE, slowly)
    os.read(begun[0], 1)
    second = start(BOB, waits)
    assert ended(second) == (
        f"waiting for the tokens that process {first[0]} on {socket.gethostname()} builds in {open_place / 'cache'}"
    )
    assert ended(first) == "built 881"
    for end in (*begun, go, gone):
        os.close(end)


@needs_root
def test_who_may_not_write_is_told(open_place: Path) -> None:
    cache(open_place, 0o2775)
    assert as_user(STRANGER, open_place).startswith(
        f"DataError: data.cache_dir must be a folder that can be written, but {open_place}/cache: [Errno 13] Permission"
    )
    assert as_user(ALICE, open_place) == "built 881"
    assert as_user(STRANGER, open_place) == "found 881"


@needs_root
def test_a_closed_cache_is_not_taken_for_a_damaged_one(open_place: Path) -> None:
    # Not shared, so the umask decides.
    folder = cache(open_place, 0o755, ALICE)
    assert as_user(ALICE, open_place, 0o077) == "built 881"
    answer = as_user(BOB, open_place)
    assert answer.startswith("DataError: data.cache_dir must hold tokens that this user can read, but ")
    assert "of user 54322 cannot be read" in answer
    found = next(path for path in folder.iterdir() if path.is_dir())
    found.chmod(0o755)
    assert re.search(r"/[\w-]+\.\w+ of user 54322", as_user(BOB, open_place))
    (found / "manifest.json").chmod(0o644)
    assert "can read, but" in as_user(BOB, open_place)
    assert as_user(ALICE, open_place) == "found 881"


@needs_root
def test_damage_of_another_user(open_place: Path) -> None:
    folder = cache(open_place, 0o2777)
    assert as_user(ALICE, open_place) == "built 881"
    found = next(path for path in folder.iterdir() if path.is_dir())
    os.truncate(found / "train-00000.bin", 4)
    assert as_user(BOB, open_place) == "built 881"
    folder.chmod(0o1777)
    os.truncate(found / "train-00000.bin", 4)
    assert as_user(ALICE, open_place) == (
        f"DataError: data.cache_dir must not hold damaged tokens, but {found} of user 54323 is damaged and cannot be "
        "replaced; have it removed, or set data.cache_dir or TRIDENT_CACHE to another folder"
    )


def test_in_a_folder_of_ones_own_the_umask_decides(open_place: Path) -> None:
    folder = open_place / "cache"
    folder.mkdir(mode=0o755)
    before = os.umask(0o077)
    try:
        prepared = prepare(wanted(open_place))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.lstat().st_mode) for path in prepared.folder.rglob("*") if path.is_file()} == {0o600}
    assert stat.S_IMODE(prepared.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(next(folder.glob("*.lock")).stat().st_mode) == 0o600


def test_in_a_shared_folder_the_folder_decides(open_place: Path) -> None:
    folder = cache(open_place, 0o2777, (os.geteuid(), os.getegid()))
    before = os.umask(0o077)
    try:
        prepared = prepare(wanted(open_place))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (prepared.folder, *prepared.folder.rglob("*"))}
    assert modes.pop(prepared.folder.name) & 0o777 == modes.pop("tokenizer") & 0o777 == 0o777
    assert set(modes.values()) == {0o644}
    assert stat.S_IMODE(next(folder.glob("*.lock")).stat().st_mode) == 0o666


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_without_locks(open_place: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_args: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    assert build(open_place, said) == "built 881"
    assert said[0] == (
        f"the file system of {open_place}/cache cannot lock ({os.strerror(number)}): others may build the same tokens"
    )


def test_two_machines_that_do_not_see_each_others_locks(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_args: None)
    hosts = {"first": "node-1", "second": "node-2"}
    monkeypatch.setattr(socket, "gethostname", lambda: hosts[threading.current_thread().name])
    together = threading.Barrier(2)
    found: dict[str, PreparedData] = {}

    def say(text: str) -> None:
        # Both have found nothing, and begin.
        if text.startswith("tokenising"):
            together.wait(PATIENCE_S)

    def ask() -> None:
        found[threading.current_thread().name] = prepare(wanted(open_place), say)

    threads = [threading.Thread(target=ask, name=name) for name in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found["first"] == found["second"]
    assert entries(open_place / "cache") == ["lock"]


def test_what_is_left_behind_goes_and_what_is_in_work_stays(open_place: Path) -> None:
    folder = open_place / "cache"
    name = prepare(wanted(open_place)).folder.name
    shutil.rmtree(folder / name)
    here, old = shared.host(), time.time() - 2 * shared.LEFT_BEHIND_S
    for partial in (
        f".{name}.{here}.1-a",
        f".{name}",
        f".{name}.elsewhere.1-a",
        f".{name}.elsewhere.2-b",
        ".other.x.1-a",
    ):
        (folder / f"{partial}.partial").mkdir()
        write_text(folder / f"{partial}.partial" / "train-00000.bin", "x")
    for path in (
        folder / f".{name}.elsewhere.2-b.partial",
        folder / f".{name}.elsewhere.2-b.partial" / "train-00000.bin",
    ):
        os.utime(path, (old, old))
    assert build(open_place) == "built 881"
    left = sorted(path.name for path in folder.glob(".*"))
    assert left == sorted([f".{name}.elsewhere.1-a.partial", ".other.x.1-a.partial"])


def test_a_lock_that_is_a_folder(open_place: Path) -> None:
    name = prepare(wanted(open_place)).folder.name
    shutil.rmtree(open_place / "cache" / name)
    (open_place / "cache" / f"{name}.lock").unlink()
    (open_place / "cache" / f"{name}.lock").mkdir()
    assert told(lambda: prepare(wanted(open_place))).startswith("data.cache_dir must be a folder that can be written")


def test_names_fit_into_a_file_system(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a/b" + "é" * 250)
    made = shared.partial_folder(open_place / ("f" * 24))
    assert made.parent == open_place
    assert len(made.name.encode()) < 120
