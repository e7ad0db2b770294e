from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.launcher.conftest import wait_until
from tests.unit.launcher.test_roster import write_entry
from trainer.errors import CheckpointError, DataError, Interrupted, PeerLostError, StorageError
from trainer.launcher import guard as guard_module
from trainer.launcher import roster as roster_module
from trainer.launcher.guard import RankGuard, lost_error, lost_message
from trainer.launcher.roster import Roster

Lose = Callable[[int], None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LOSS_WAIT_S", 0.2)
    # The watch would end this very process.
    monkeypatch.setattr(guard_module, "PEER_GRACE_S", 600.0)
    monkeypatch.delenv("TRIDENT_SUPERVISED", raising=False)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Codes with which the watch would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(guard_module, "PEER_GRACE_S", 0.2)
    monkeypatch.setattr(roster_module, "POLL_S", 0.05)
    return codes


def entered(folder: Path, rank: int = 0) -> RankGuard:
    guard = RankGuard(folder, rank)
    guard.enter()
    return guard


def told(text: str) -> list[str]:
    """What a person reads: the traceback goes to the rank's log."""
    return [line for line in text.splitlines() if line.startswith(("error:", "hint:"))]


def test_a_known_fault_is_told_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = entered(tmp_path)
    assert guard.fail(CheckpointError("x must hold", ["do y"])) == 4
    text = capsys.readouterr().err
    assert told(text) == ["error: x must hold", "hint: do y"]
    assert "CheckpointError: x must hold" in text, "the traceback belongs into the log"
    assert Roster(tmp_path).present() == {}
    assert Roster(tmp_path).told_failure() == 4


def test_an_unknown_fault_names_rank_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entered(tmp_path, 3).fail(ValueError("first line\nsecond line")) == 1
    assert told(capsys.readouterr().err) == [
        "error: rank 3 failed: ValueError: first line",
        f"hint: the traceback is at the end of {tmp_path / 'rank_3.log'}",
    ]


def test_a_fault_without_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entered(tmp_path).fail(AssertionError()) == 1
    assert told(capsys.readouterr().err)[0] == "error: rank 0 failed: AssertionError: "


def test_the_end_of_the_log_is_shown_of_what_nobody_foresaw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lose_rank: Lose
) -> None:
    for rank in (0, 1, 2):
        (tmp_path / f"rank_{rank}.log").write_text("\n".join(f"{rank}-{line}" for line in range(30)))
    entered(tmp_path, 2).fail(ValueError("x"))
    shown = [line for line in capsys.readouterr().err.splitlines() if " | " in line]
    assert shown == [f"rank 2 | 2-{line}" for line in range(10, 30)]
    Roster(tmp_path).clear()
    entered(tmp_path, 0).fail(DataError("a known fault needs no log"))
    assert " | " not in capsys.readouterr().err
    Roster(tmp_path).clear()
    lose_rank(1)
    entered(tmp_path, 0).fail(RuntimeError("Connection closed by peer"))
    assert "rank 1 | 1-29" in capsys.readouterr().err


def test_only_the_first_rank_to_fail_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = entered(tmp_path, 1), entered(tmp_path, 0)
    assert first.fail(DataError("bad data")) == 2
    assert second.fail(RuntimeError("Connection closed by peer")) == 1
    assert told(capsys.readouterr().err) == ["error: bad data"]


BROKEN = pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), PeerLostError("no answer")])


@BROKEN
def test_a_broken_collective_is_blamed_on_the_lost_peer(
    error: Exception, tmp_path: Path, lose_rank: Lose, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_rank(1)
    assert entered(tmp_path).fail(error) == 7
    assert told(capsys.readouterr().err) == [
        f"error: {lost_message([1])}",
        "hint: start the same command again: it resumes from the last checkpoint",
    ]


class Kills:
    """The kernel has killed a process for its memory."""

    def __init__(self, is_ours: bool = True) -> None:
        self._is_ours = is_ours

    def hint(self) -> str:
        return "the kernel has killed a process"

    def is_ours(self) -> bool:
        return self._is_ours


def account(rank: int) -> tuple[list[str], list[str]]:
    return [f"a table of rank {rank}"], ["this change would fit"]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "OomKills", Kills)


@pytest.mark.usefixtures("killed")
def test_a_peer_that_the_kernel_killed_for_its_memory_is_out_of_memory(
    tmp_path: Path, lose_rank: Lose, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_rank(1)
    guard = RankGuard(tmp_path, 0, account=account)
    guard.enter()
    assert guard.fail(RuntimeError("Connection closed by peer")) == 6
    text = capsys.readouterr().err
    assert "a table of rank 1\nerror: every rank must live" in text
    assert told(text)[1:] == [
        "hint: the kernel has killed a process",
        "hint: this change would fit",
        "hint: start the same command again: it resumes from the last checkpoint",
    ]
    assert Roster(tmp_path).told_failure() == 6


@pytest.mark.usefixtures("killed")
def test_the_watch_ends_a_rank_with_the_same_code(
    tmp_path: Path, lose_rank: Lose, exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_rank(1)
    guard = entered(tmp_path)
    wait_until(lambda: bool(exits))
    guard.leave()
    assert exits[0] == 6
    assert "the kernel has killed a process" in capsys.readouterr().err


def test_a_kill_that_may_be_another_runs_is_a_loss() -> None:
    error = lost_error([1], Kills(is_ours=False), account=account)  # type: ignore[arg-type]
    assert (type(error), error.hints[0]) == (PeerLostError, "the kernel has killed a process")


ENDS: dict[str, Callable[[RankGuard], object]] = {
    "while something unwinds": lambda guard: guard.fail(Interrupted("SIGTERM", 75)),
    "while nothing returns": lambda guard: guard.interrupted(75),
}


@pytest.mark.parametrize("when", ENDS)
def test_a_launcher_that_loses_a_rank_asks_the_others_to_end(
    when: str, tmp_path: Path, lose_rank: Lose, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM when a rank has died: who was lost is told, not that somebody asked."""
    lose_rank(1)
    assert ENDS[when](entered(tmp_path)) in (7, None)
    captured = capsys.readouterr()
    assert told(captured.err)[0] == f"error: {lost_message([1])}"
    assert "nothing to save" not in captured.out
    assert Roster(tmp_path).told_failure() == 7
    assert list(Roster(tmp_path).present()) == []


def test_a_signal_alone_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entered(tmp_path).fail(Interrupted("SIGTERM", 75)) == 75
    assert told(capsys.readouterr().err) == []
    assert Roster(tmp_path).told_failure() == 75


def test_a_broken_connection_to_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_entry(tmp_path, 5, host="elsewhere")
    error = RuntimeError("pair.cc:553: Connection closed by peer [10.77.0.2]:40674. This is typical\nand more")
    assert entered(tmp_path, 3).fail(error) == 7
    assert told(capsys.readouterr().err)[0] == (
        "error: every rank must live until the run ends, but rank 3 lost the connection to one: "
        "pair.cc:553: Connection closed by peer [10.77.0.2]:40674. This is typical"
    )


@pytest.mark.parametrize("error", [RuntimeError("a bug"), StorageError("connection reset")])
def test_other_faults_are_not_blamed_on_another_machine(error: Exception, tmp_path: Path) -> None:
    write_entry(tmp_path, 5, host="elsewhere")
    assert entered(tmp_path).fail(error) == getattr(error, "exit_code", 1)


@BROKEN
def test_a_parent_names_the_lost_rank_itself(
    error: Exception,
    tmp_path: Path,
    lose_rank: Lose,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIDENT_SUPERVISED", "1")
    lose_rank(1)
    assert entered(tmp_path).fail(error) == 7
    assert told(capsys.readouterr().err) == []
    assert Roster(tmp_path).told_failure() is None


@pytest.mark.parametrize("error", [PeerLostError("a collective timed out"), RuntimeError("a bug")])
def test_under_a_parent_a_rank_tells_what_the_parent_cannot_see(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIDENT_SUPERVISED", "1")
    code = entered(tmp_path).fail(error)
    assert code == (7 if isinstance(error, PeerLostError) else 1)
    assert str(error) in told(capsys.readouterr().err)[0]
    assert Roster(tmp_path).told_failure() == code


def test_ctrl_c_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entered(tmp_path).fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert Roster(tmp_path).told_failure() is None


@pytest.mark.parametrize(("rank", "speaks"), [(0, True), (1, False)])
def test_on_a_broken_disk_rank_0_speaks(
    rank: int, speaks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(roster: Roster, exit_code: int) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Roster, "claim_failure", refuse)
    assert entered(tmp_path, rank).fail(StorageError("the disk is full")) == 8
    assert told(capsys.readouterr().err) == ["error: the disk is full"] * speaks


def test_a_rank_that_waits_for_a_lost_peer_ends(
    tmp_path: Path, lose_rank: Lose, capsys: pytest.CaptureFixture[str], exits: list[int]
) -> None:
    entered(tmp_path)
    lose_rank(1)
    wait_until(lambda: exits)
    assert exits == [7]
    assert told(capsys.readouterr().err)[0] == f"error: {lost_message([1])}"
    assert Roster(tmp_path).present() == {}


def test_a_guard_that_left_ends_nothing(tmp_path: Path, lose_rank: Lose, exits: list[int]) -> None:
    guard = entered(tmp_path)
    guard.leave()
    lose_rank(1)
    with pytest.raises(AssertionError, match="not so within"):
        wait_until(lambda: exits, timeout_s=0.6)


def test_a_folder_that_cannot_be_written_is_a_storage_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="the disk is full"):
        RankGuard(tmp_path, 0).enter()
    assert list(tmp_path.iterdir()) == []


def test_prepare_forgets_an_earlier_attempt(tmp_path: Path, lose_rank: Lose) -> None:
    lose_rank(1)
    Roster(tmp_path).claim_failure(2)
    RankGuard.prepare(tmp_path)
    assert Roster(tmp_path).lost() == []
    assert Roster(tmp_path).claim_failure(1)
    RankGuard.prepare(tmp_path / "new" / "logs")
    assert (tmp_path / "new" / "logs").is_dir()


def test_lost_ranks_in_words() -> None:
    assert "rank 2 was lost" in lost_message([2])
    assert "ranks 2, 5 were lost" in lost_message((2, 5))
