from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.launcher import orphan
from trainer.launcher.orphan import watch_launcher
from trainer.launcher.start import Outcome
from trainer.log import be_quiet

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def hints(self) -> list[str]:
        return [line.removeprefix("hint: ") for line in self.err.splitlines() if line.startswith("hint: ")]


Run = Callable[..., Answer]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in; environment and voice are put back, and nothing watches this process any more."""
    monkeypatch.chdir(tmp_path)
    watches: list[threading.Event] = []

    def watch(on_gone: Callable[[], None]) -> None:
        watches.append(watch_launcher(on_gone))

    monkeypatch.setattr(orphan, "watch_launcher", watch)
    before = dict(os.environ)
    os.environ["TRIDENT_CACHE"] = str(cache)
    yield tmp_path
    for one in watches:
        one.set()
    be_quiet(False)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def trident(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*words: str) -> Answer:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(trident: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that must be refused as every wrong input is: soon, in plain words, leaving no trace."""
    # A rank would compute in one, or be started by the other.
    monkeypatch.setitem(sys.modules, "trainer.app", None)

    def no_ranks(*args: object, **kwargs: object) -> Outcome:
        raise AssertionError("ranks must not be started")

    monkeypatch.setattr("trainer.supervise.run_ranks", no_ranks)

    def run(*words: str, code: int = 2) -> Answer:
        before = contents(place)
        answer = trident(*words)
        assert contents(place) == before, "something was written"
        check_style(answer)
        assert answer.code == code
        return answer

    return run


def check_style(answer: Answer) -> None:
    """One line for each problem, then at most three hints; no traceback, nothing else."""
    lines = answer.err.splitlines()
    assert answer.problems, f"nothing was said: {answer}"
    assert len(answer.hints) <= 3
    assert lines == [f"error: {text}" for text in answer.problems] + [f"hint: {text}" for text in answer.hints]
    assert all(len(text) > 10 for text in answer.problems + answer.hints)
    assert len(set(answer.problems)) == len(answer.problems)
    assert "Traceback" not in answer.out + answer.err
