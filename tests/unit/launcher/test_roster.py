from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.unit.launcher.conftest import StartRank, wait_until
from trainer.launcher import roster as roster_module
from trainer.launcher.roster import Roster, watch_peers


def write_entry(folder: Path, rank: int, **changes: object) -> None:
    entry = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    (folder / f"rank_{rank}.pid").write_text(json.dumps({**entry, **changes}))


def test_enter_and_leave(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "logs")
    assert (roster.present(), roster.lost()) == ({}, [])
    roster.enter(2)
    assert (roster.present(), roster.lost()) == ({2: os.getpid()}, [])
    assert (roster.left_entries(), roster.has_other_hosts()) == ([2], False)
    roster.leave(2)
    roster.leave(2)
    assert (roster.present(), roster.lost()) == ({}, [])


def test_a_killed_process_is_lost(tmp_path: Path, start_rank: StartRank) -> None:
    roster = Roster(tmp_path)
    first, second = start_rank(0), start_rank(1)
    assert roster.present() == {0: first.pid, 1: second.pid}
    second.kill()
    # Not yet waited for: a zombie is as gone as any.
    wait_until(lambda: roster.lost() == [1])
    assert roster.present() == {0: first.pid}
    second.wait(10)
    assert roster.lost() == [1]


def test_a_process_id_that_was_given_to_another_is_lost(tmp_path: Path) -> None:
    write_entry(tmp_path, 0, started=psutil.Process().create_time() - 100)
    write_entry(tmp_path, 1, started=psutil.Process().create_time() + 1.5)
    roster = Roster(tmp_path)
    assert roster.lost() == [0]
    # The clock was set while the run goes on.
    assert roster.present() == {1: os.getpid()}


def test_other_hosts_are_not_judged(tmp_path: Path) -> None:
    write_entry(tmp_path, 0, host="elsewhere", started=0.0)
    write_entry(tmp_path, 1, host="elsewhere")
    assert (Roster(tmp_path).present(), Roster(tmp_path).lost()) == ({}, [])
    assert Roster(tmp_path).has_other_hosts()
    write_entry(tmp_path, 3)
    assert Roster(tmp_path).left_entries() == [0, 1, 3]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"host": "H", "pid": "x", "started": 1}'])
def test_a_corrupt_entry_is_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / "rank_0.pid").write_text(text.replace("H", socket.gethostname()))
    (tmp_path / "rank_x.pid").write_text(text)
    write_entry(tmp_path, 1, pid=0)
    write_entry(tmp_path, 2, pid=-5)
    assert (Roster(tmp_path).present(), Roster(tmp_path).lost()) == ({}, [])


def test_a_process_that_may_not_be_looked_at_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> str:
        raise psutil.AccessDenied(process.pid)

    write_entry(tmp_path, 0)
    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert Roster(tmp_path).lost() == []


def test_clear_removes_what_an_earlier_attempt_left(tmp_path: Path, lose_rank: Callable[[int], None]) -> None:
    roster = Roster(tmp_path)
    lose_rank(3)
    assert roster.claim_failure(2)
    roster.clear()
    assert roster.lost() == []
    assert roster.told_failure() is None


def test_the_first_claim_wins_and_names_the_exit_code(tmp_path: Path) -> None:
    roster = Roster(tmp_path)
    assert roster.told_failure() is None
    assert [roster.claim_failure(code) for code in (5, 1)] == [True, False]
    assert roster.told_failure() == 5


def test_of_many_claims_one_wins(tmp_path: Path) -> None:
    won: list[bool] = []
    start = threading.Barrier(8)

    def claim() -> None:
        start.wait(10)
        won.append(Roster(tmp_path).claim_failure(1))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(won) == [False] * 7 + [True]


def test_a_claim_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Roster(tmp_path / "missing").claim_failure(1)


def test_a_claim_on_a_full_disk_counts_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    roster = Roster(tmp_path)
    assert [roster.claim_failure(code) for code in (5, 1)] == [True, False]
    assert roster.told_failure() == 8


def test_leaving_a_broken_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    Roster(tmp_path).leave(0)


def test_the_watch_calls_after_the_grace(
    tmp_path: Path, lose_rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "POLL_S", 0.05)
    lose_rank(1)
    calls: list[list[int]] = []
    begin = time.monotonic()
    watch_peers(Roster(tmp_path), calls.append, grace_s=0.3)
    wait_until(lambda: calls)
    assert time.monotonic() - begin >= 0.3
    time.sleep(0.3)
    assert calls == [[1]]


def test_the_watch_forgives_a_peer_that_leaves_in_time(
    tmp_path: Path, lose_rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "POLL_S", 0.05)
    roster = Roster(tmp_path)
    lose_rank(1)
    calls: list[list[int]] = []
    stop = watch_peers(roster, calls.append, grace_s=0.4)
    time.sleep(0.15)
    roster.leave(1)
    time.sleep(0.6)
    assert calls == []
    stop.set()


def test_a_watch_that_was_stopped_is_silent(
    tmp_path: Path, lose_rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "POLL_S", 0.05)
    calls: list[list[int]] = []
    watch_peers(Roster(tmp_path), calls.append, grace_s=0.0).set()
    lose_rank(1)
    time.sleep(0.3)
    assert calls == []


def test_a_rank_that_leaves_and_ends_while_it_is_looked_at_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_entry(tmp_path, 0)
    write_entry(tmp_path, 1)
    roster = Roster(tmp_path)

    def has_just_ended(entry: object) -> bool:
        roster.leave(1)
        return False

    monkeypatch.setattr(roster_module._Entry, "is_alive", property(has_just_ended))
    assert roster.lost() == [0]
