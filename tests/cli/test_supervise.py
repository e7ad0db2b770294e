from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer, Run, contents
from trainer.config.compose import compose
from trainer.config.schema import ConsoleKind
from trainer.config.words import quoted
from trainer.launcher.roster import Roster
from trainer.launcher.start import Outcome

WORDS = (
    *("train", "data=synthetic", "model.vocab_size=512", "data.synthetic_tokens=8192", "model.seq_length=16"),
    *("runtime.device=cpu", "layout=tp2", "launch.master_port=29511", "launch.grace_s=3"),
)
Start = Callable[[int, Sequence[str], Path, int | None, float], Outcome]


@pytest.fixture
def with_ranks(trident: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs a training whose ranks are the given function."""

    def run(ranks: Start, *words: str) -> Answer:
        def run_ranks(
            world_size: int, arguments: Sequence[str], log_folder: Path, port: int | None, grace_s: float
        ) -> Outcome:
            return ranks(world_size, arguments, log_folder, port, grace_s)

        monkeypatch.setattr("trainer.supervise.run_ranks", run_ranks)
        return trident(*WORDS, *words)

    return run


def ended(code: int, *lost: int, log: str = "", told: int | None = None) -> Start:
    def ranks(world_size: int, arguments: Sequence[str], folder: Path, port: int | None, grace_s: float) -> Outcome:
        with (folder / "launcher.log").open("a") as file:
            file.write(log)
        if told is not None:
            Roster(folder).claim_failure(told)
        return Outcome(code, lost, False)

    return ranks


def test_ranks_get_what_was_decided_once(with_ranks: Callable[..., Answer], place: Path) -> None:
    calls: list[tuple[int, Sequence[str], Path, int | None, float]] = []

    def ranks(world_size: int, arguments: Sequence[str], folder: Path, port: int | None, grace_s: float) -> Outcome:
        calls.append((world_size, arguments, folder, port, grace_s))
        assert os.environ["DS_ACCELERATOR"] == "cpu"
        return Outcome(0, (), False)

    answer = with_ranks(ranks, "--local_rank=0", "run_dir='runs/a, b'")
    assert (answer.code, answer.err) == (0, "")
    folder = place / "runs" / "a, b"
    [(world_size, arguments, logs, port, grace_s)] = calls
    assert (world_size, logs, port, grace_s) == (2, folder / "logs", 29511, 3)
    assert arguments[0] == "train"
    assert Path(compose(arguments[1:]).run_dir) == folder, "every rank must use the parent's folder"
    assert "2 ranks = pipeline 1 x tensor 2 x data 1" in answer.out
    assert (folder / "config.yaml").is_file()
    assert json.loads((folder / "plan.json").read_text())["layout"]["world_size"] == 2


def test_a_run_that_goes_on_in_another_layout_is_predicted_anew(with_ranks: Callable[..., Answer], place: Path) -> None:
    def stored(*words: str) -> dict[str, Any]:
        assert with_ranks(ended(0), "run_dir=run", *words).code == 0
        found: dict[str, Any] = json.loads((place / "run" / "plan.json").read_text())["prediction"]
        return found

    before, after = stored(), stored("layout.pipeline_parallel_size=2")
    assert (len(before["stages"]), len(after["stages"])) == (1, 2)
    assert before["peak_memory_gib"] > after["peak_memory_gib"] > 0


def test_auto_takes_what_the_machine_has(
    with_ranks: Callable[..., Answer], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds: list[int] = []

    def ranks(world_size: int, *_: object) -> Outcome:
        worlds.append(world_size)
        return Outcome(0, (), False)

    # 7 cores have room for 3 replicas of 2 ranks, but a batch of 16 splits over 2.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    answer = with_ranks(ranks, "layout.data_parallel_size=auto")
    assert (answer.code, worlds) == (0, [4])
    assert "4 ranks = pipeline 1 x tensor 2 x data 2" in answer.out


@pytest.mark.parametrize("code", [0, 75, 130])
def test_expected_ends_need_no_words(code: int, with_ranks: Callable[..., Answer]) -> None:
    answer = with_ranks(ended(code, log="noise\n"))
    assert (answer.code, answer.err) == (code, "")


def test_what_a_rank_told_is_not_told_again(with_ranks: Callable[..., Answer]) -> None:
    answer = with_ranks(ended(5, log="noise\n", told=5))
    assert (answer.code, answer.err) == (5, "")


def test_lost_ranks_are_named_with_the_end_of_their_log(with_ranks: Callable[..., Answer], place: Path) -> None:
    log = place / "run" / "logs" / "rank_1.log"
    log.parent.mkdir(parents=True)
    log.write_text("\n".join(f"line {index}" for index in range(40)))
    answer = with_ranks(ended(7, 1, 3), "run_dir=run")
    assert answer.code == 7
    assert "ranks 1, 3 were lost" in answer.problems[0]
    assert answer.hints == [
        f"its log is {log}",
        "start the same command again: it resumes from the last checkpoint",
    ]
    shown = [line for line in answer.err.splitlines() if line.startswith("rank 1 | ")]
    assert shown == [f"rank 1 | line {index}" for index in range(20, 40)]


def test_a_rank_that_the_kernel_killed_for_its_memory_is_out_of_memory(
    with_ranks: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kills:
        def hint(self) -> str:
            return "the kernel has killed a process"

        def is_ours(self) -> bool:
            return True

    monkeypatch.setattr("trainer.supervise.OomKills", Kills)
    answer = with_ranks(ended(7, 1), "launch.max_restarts=3")
    assert answer.code == 6
    assert "rank 1 ran out of memory (the kernel killed it); it was predicted to hold, in MiB:" in answer.err
    assert "starting again" not in answer.out, "the same config would come to the same end"
    assert answer.hints[0] == "the kernel has killed a process"


def test_an_error_that_only_the_launchers_log_has_is_shown(with_ranks: Callable[..., Answer], place: Path) -> None:
    logs = place / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "launcher.log").write_text("error: of an earlier attempt\n")
    answer = with_ranks(ended(2, log="[INFO] noise\nerror: a must be b\nhint: do c\n"), "run_dir=run")
    assert (answer.code, answer.problems, answer.hints) == (2, ["a must be b"], ["do c"])
    assert "noise" not in answer.out


def test_a_launcher_that_dies_without_a_word_shows_its_log(with_ranks: Callable[..., Answer], place: Path) -> None:
    answer = with_ranks(ended(1, log="Traceback\nImportError: no module\n"), "run_dir=run")
    assert answer.code == 1
    assert answer.problems == ["the deepspeed launcher must start every rank, but ended with exit code 1"]
    assert answer.hints == [f"its log is {place / 'run' / 'logs' / 'launcher.log'}"]
    assert "launcher | ImportError: no module" in answer.err


def test_a_quiet_run_says_only_what_went_wrong(with_ranks: Callable[..., Answer], place: Path) -> None:
    answer = with_ranks(ended(0), "--quiet", "run_dir=fine")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    log = place / "run" / "logs" / "rank_1.log"
    log.parent.mkdir(parents=True)
    log.write_text("killed\n")
    answer = with_ranks(ended(7, 1), "--quiet", "run_dir=run")
    assert answer.out == ""
    assert answer.err.startswith("rank 1 | killed\nerror: every rank must live")
    assert "logging:\n  console: quiet\n" in (place / "run" / "config.yaml").read_text()


def test_quiet_reaches_the_ranks_as_a_setting(with_ranks: Callable[..., Answer]) -> None:
    seen: list[Sequence[str]] = []

    def ranks(world_size: int, arguments: Sequence[str], folder: Path, port: int | None, grace_s: float) -> Outcome:
        seen.append(arguments)
        return Outcome(0, (), False)

    with_ranks(ranks, "--quiet")
    assert compose(seen[0][1:]).logging.console is ConsoleKind.quiet


def test_what_an_earlier_attempt_told_is_forgotten(with_ranks: Callable[..., Answer], place: Path) -> None:
    with_ranks(ended(5, told=5), "run_dir=run")
    assert with_ranks(ended(1), "run_dir=run").problems


def test_a_terminal_that_is_gone_stops_nobody(
    with_ranks: Callable[..., Answer], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HungUp(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", HungUp())
    monkeypatch.setattr(sys, "stderr", HungUp())
    assert with_ranks(ended(7, 1)).code == 7


def test_data_are_prepared_before_the_folder_is_written(
    with_ranks: Callable[..., Answer], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.beginning.prepare", interrupted)
    assert with_ranks(ended(0)).code == 130
    assert contents(place) == {}


@pytest.mark.parametrize(
    "path",
    ["/a b/c,d", "/it's", "/a\\b", "/a\\", "/a\\'b", "/x=y", "/[a]", "/{x: 1}", "/\u00e4", '/q"q', "/\\\\'", "/%s"],
)
def test_any_folder_name_reaches_the_ranks(path: str) -> None:
    assert compose([f"run_dir={quoted(path)}"]).run_dir == path
