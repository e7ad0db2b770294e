from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, Run
from trainer.launcher.start import Outcome
from trainer.restarts import LONGEST_WAIT_S, Restart, RestartPolicy, as_exit_code, read_restarts, remember

WORDS = (
    *("train", "data=synthetic", "model.vocab_size=512", "data.synthetic_tokens=8192", "model.seq_length=16"),
    *("runtime.device=cpu", "layout=tp2"),
)


class Ranks:
    """Stands in for the launcher: each attempt logs a step and ends as told."""

    def __init__(self, *attempts: tuple[int, int, tuple[int, ...]]) -> None:
        self.attempts = list(attempts)
        self.words: list[Sequence[str]] = []
        self.asked = False

    def __call__(
        self, world_size: int, arguments: Sequence[str], log_folder: Path, port: int | None, grace_s: float
    ) -> Outcome:
        code, step, lost = self.attempts.pop(0)
        self.words.append(arguments)
        log_folder.mkdir(exist_ok=True)
        (log_folder / "launcher.log").touch()
        with (log_folder.parent / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")
        return Outcome(code, lost, self.asked)


@pytest.fixture
def start(trident: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], object]:
    waited: list[float] = []
    monkeypatch.setattr("trainer.supervise.time.sleep", waited.append)

    def run(ranks: Ranks, *words: str) -> Answer:
        monkeypatch.setattr("trainer.supervise.run_ranks", ranks)
        return trident(*WORDS, *words)

    return waited, run


def test_a_lost_rank_and_then_success(start: tuple[list[float], object], place: Path) -> None:
    waited, run = start
    ranks = Ranks((7, 3, (1,)), (1, 9, ()), (0, 20, ()))
    answer = run(ranks, "launch.max_restarts=3", "launch.restart_backoff_s=2")  # type: ignore[operator]
    assert answer.code == 0
    assert waited == [2.0, 4.0]
    assert ranks.words == [ranks.words[0]] * 3, "one command for every attempt: what it means is decided in one place"
    assert "starting again in 2 s, from the newest checkpoint (last step logged: 3)" in answer.out
    found = read_restarts(place / "runs" / "default")
    assert [(r["exit_code"], r["step"], r["lost_ranks"]) for r in found] == [(7, 3, [1]), (1, 9, [])]
    assert {r["by"] for r in found} == {"trident"}


def test_a_requeued_job_counts_too(
    start: tuple[list[float], object], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(Ranks((7, 3, (1,)), (0, 20, ())), "launch.max_restarts=3").code == 0  # type: ignore[operator]
    found = read_restarts(place / "runs" / "default")
    assert [(r["by"], r["exit_code"], r["step"]) for r in found] == [("Slurm", None, 0), ("trident", 7, 3)]


def test_the_same_step_twice(start: tuple[list[float], object]) -> None:
    waited, run = start
    answer = run(Ranks((1, 3, ()), (1, 3, ())), "launch.max_restarts=9")  # type: ignore[operator]
    assert answer.code == 1
    assert waited == [5.0]
    assert "not started again: it failed again after step 3, so a restart does not help" in answer.out


def test_all_restarts_used(start: tuple[list[float], object]) -> None:
    _, run = start
    answer = run(Ranks((7, 3, (0,)), (7, 5, (0,))), "launch.max_restarts=1")  # type: ignore[operator]
    assert answer.code == 7
    assert "not started again: all of launch.max_restarts=1 restarts are used" in answer.out


@pytest.mark.parametrize("code", [2, 4, 5, 6, 8, 75, 130])
def test_what_would_fail_again_is_not_started_again(code: int, start: tuple[list[float], object]) -> None:
    waited, run = start
    answer = run(Ranks((code, 3, ())), "launch.max_restarts=9")  # type: ignore[operator]
    assert (answer.code, waited) == (code, [])
    assert "again" not in answer.out


def test_by_default_nothing_is_started_again(start: tuple[list[float], object]) -> None:
    waited, run = start
    answer = run(Ranks((7, 3, (0,))))  # type: ignore[operator]
    assert (answer.code, waited) == (7, [])
    assert "not started again" not in answer.out


def test_asked_to_stop_while_a_rank_is_lost(start: tuple[list[float], object]) -> None:
    waited, run = start
    ranks = Ranks((7, 3, (0,)))
    ranks.asked = True
    assert run(ranks, "launch.max_restarts=9").code == 7  # type: ignore[operator]
    assert waited == []


def test_one_rank_gets_a_parent(start: tuple[list[float], object]) -> None:
    _, run = start
    ranks = Ranks((1, 3, ()), (0, 5, ()))
    answer = run(ranks, "layout=single", "launch.max_restarts=1")  # type: ignore[operator]
    assert (answer.code, len(ranks.words)) == (0, 2)


def test_no_effect_under_a_launcher(trident: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    answer = trident(*WORDS, "launch.max_restarts=1")
    assert answer.code == 2
    assert answer.problems[0].startswith("launch.max_restarts=1 has no effect under a launcher")


def test_waits_grow_and_are_bounded() -> None:
    policy = RestartPolicy(20, 100.0)
    assert [policy.wait_s(7, step) for step in range(4)] == [100.0, 200.0, LONGEST_WAIT_S, LONGEST_WAIT_S]


@pytest.mark.parametrize(
    ("status", "code"),
    [(0, 0), (1, 1), (2, 2), (75, 75), (137, 7), (139, 7), (247, 7), (245, 7), (143, 143), (130, 130)],
)
def test_a_launchers_status(status: int, code: int) -> None:
    assert as_exit_code(status) == code


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]"])
def test_a_damaged_record_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "restarts.json").write_text(content)
    assert read_restarts(tmp_path) == []
    remember(tmp_path, Restart.now(7, 3, [1]))
    assert [item["step"] for item in read_restarts(tmp_path)] == [3]
