"""A fork that is stopped and killed again and again, and each time started by the same command."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.chaos_fixtures import Final, final_of, last_row, newest
from tests.helpers.command import LAUNCHER_NAMES, MARK, rank_pid, run, trident
from tests.launch.launch_fixtures import LAUNCH, with_stubs
from trainer.checkpoint.origin import read_origin

WORDS = (
    *("data=synthetic", "data.synthetic_tokens=4096", "data.validation_fraction=0.1", "runtime.device=cpu"),
    *("model.vocab_size=61", "model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2"),
    *("model.ffn_hidden_size=32", "model.seq_length=8", "model.dropout=0.1", "schedule=constant"),
    *("schedule.warmup_steps=0", "batch.global_batch_size=4", "batch.micro_batch_size=1", "zero=stage0"),
    *("runtime.threads_per_rank=1", "logging.wandb=disabled", "checkpoint.every=20", "launch.grace_s=60"),
)
FORKED_AT, STEPS = 4, 300
END_S = 400.0
"""A start of four ranks on a busy machine, and then some."""
STOPPED = 75
_RESUMED = re.compile(r"resumed from (\S+) \(step ([0-9]+)\)")


@dataclass(frozen=True)
class Way:
    """How the same command is started again."""

    name: str
    ranks: int
    command: Callable[[list[str]], list[str]]
    """Of the words of `trident train`."""
    stop: signal.Signals
    """What asks the command to stop."""
    stopped: tuple[int, ...] = (STOPPED,)
    """How it ends then."""
    starts_ranks_again: bool = False
    """Whether it goes on by itself when a rank is killed."""
    can_be_killed: bool = True
    """Whether ranks notice that it was killed."""
    environment: Mapping[str, str] = field(default_factory=dict)


def _torchrun(words: list[str]) -> list[str]:
    launcher = str(Path(sys.executable).parent / "torchrun")
    return [
        *(launcher, "--nproc-per-node", "2", "--max-restarts", "99", "--master-port", "29877"),
        *("-m", "trainer", "train", *words),
    ]


def ways(log: Path) -> dict[str, Way]:
    """Return every way. `log` takes what the stand-ins of Slurm were asked for."""
    job = {"SLURM_JOB_ID": "19877", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "1"}
    found = (
        Way("alone", 1, lambda words: trident("train", *words, "layout=single"), signal.SIGTERM),
        Way(
            "supervisor",
            2,
            lambda words: trident(
                "train", *words, "layout=pp2", "launch.max_restarts=99", "launch.restart_backoff_s=0.1"
            ),
            signal.SIGTERM,
            starts_ranks_again=True,
        ),
        Way(
            "slurm",
            4,
            lambda words: ["bash", str(LAUNCH / "slurm.sbatch"), "--max-restarts", "99", *words, "layout=pp2"],
            signal.SIGUSR1,
            # The batch shell is killed together with its tasks.
            can_be_killed=False,
            environment={**with_stubs(log), **job},
        ),
        Way(
            "torchrun",
            2,
            lambda words: _torchrun([*words, "layout=pp2"]),
            signal.SIGTERM,
            # It says that it got a signal, whatever its ranks say.
            stopped=(STOPPED, 1, 128 + signal.SIGTERM, -signal.SIGTERM),
            starts_ranks_again=True,
        ),
    )
    return {way.name: way for way in found}


class Campaign:
    """Interrupts forks, one after the other, and compares each that finishes with one that was never interrupted.

    Args:
        way: how it is started.
        folder: for everything.
        seed: decides what is done when.
    """

    def __init__(self, way: Way, folder: Path, seed: str) -> None:
        self.way = way
        self.tally: Counter[str] = Counter()
        self.finished = 0
        self._folder = folder
        self._chance = random.Random(f"{way.name} {seed}")
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES},
            **way.environment,
            MARK: f"{os.getpid()}-{way.name}",
        }
        ended = run(
            trident("train", *WORDS, "layout=single", f"train.steps={FORKED_AT}", "run_dir=base"), folder, END_S
        )
        assert ended.code == 0, ended.err
        shutil.copytree(folder / "base", folder / "kept")
        self._run_dir = folder / "whole"
        started = time.monotonic()
        with self._output() as output:
            code = self._start(output).wait(END_S)
        assert code == 0, self._said()
        self.whole_s = time.monotonic() - started
        self.expected: Final = final_of(folder / "whole")

    def interrupt(self, wanted: int) -> None:
        """Interrupt forks until it has been done so often."""
        while self.tally.total() < wanted:
            self._run_dir = self._folder / f"fork_{self.finished}"
            self._base_is_back()
            self._fork(wanted)
            self._judge()

    def _fork(self, wanted: int) -> None:
        """Interrupt one fork until there is enough of it, or it has finished, and let it finish."""
        process: subprocess.Popen[bytes] | None = None
        with self._output() as output:
            try:
                while True:
                    before = newest(self._run_dir)
                    if process is None:
                        process = self._start(output)
                        self._base_goes()
                    enough = self.tally.total() >= wanted
                    how = "" if enough else self._wait_and_hit(process)
                    if not how:
                        assert process.wait(END_S) == 0, self._said()
                        return
                    self.tally[how] += 1
                    assert newest(self._run_dir) >= before, f"checkpoints were lost: {before} was there"
                    if how != "a rank was killed" or not self.way.starts_ranks_again:
                        code = process.wait(END_S)
                        assert how != "stopped" or code in self.way.stopped, self._said()
                        process = None
            finally:
                self._kill_what_is_left()

    def _wait_and_hit(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for a random moment and interrupt; return what was done, nothing if the run ended before."""
        chance, reached = self._chance, last_row(self._run_dir)
        steps = chance.randrange(20) if chance.random() < 0.8 else None
        end = time.monotonic() + (END_S if steps is not None else chance.random() * min(self.whole_s, 20.0))
        while time.monotonic() < end and (steps is None or last_row(self._run_dir) <= reached + steps):
            if process.poll() is not None:
                return self._early_end(process)
            time.sleep(0.02)
        assert steps is None or last_row(self._run_dir) > reached, f"no step in {END_S:g} s\n{self._said()}"
        kinds = ["stopped", "a rank was killed", *["the command was killed"] * self.way.can_be_killed]
        how = chance.choice(kinds)
        if how == "stopped" and steps is not None:
            process.send_signal(self.way.stop)
            return how
        if how == "a rank was killed" and self.way.ranks > 1:
            try:
                os.kill(rank_pid(self._run_dir, chance.randrange(self.way.ranks)), signal.SIGKILL)
                return how
            except (OSError, ValueError):
                how = "everything was killed"
        if how == "the command was killed":
            process.kill()
            return how
        for started in self._started():
            started.kill()
        return "everything was killed"

    def _early_end(self, process: subprocess.Popen[bytes]) -> str:
        # A supervisor gives up when the same step fails twice, which random kills make happen.
        if process.returncode == 7:
            return "gave up"
        assert process.returncode == 0, self._said()
        return ""

    def _start(self, output: int) -> subprocess.Popen[bytes]:
        words = [*WORDS, f"train.steps={STEPS}", f"run_dir={self._run_dir.name}", "checkpoint.resume=base"]
        return subprocess.Popen(
            self.way.command(words),
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _base_is_back(self) -> None:
        shutil.rmtree(self._folder / "base", ignore_errors=True)
        shutil.copytree(self._folder / "kept", self._folder / "base")

    def _base_goes(self) -> None:
        """Once the fork has a checkpoint, where it began may go, and half of the time it does."""
        if newest(self._run_dir) and self._chance.random() < 0.5:
            shutil.rmtree(self._folder / "base", ignore_errors=True)

    def _judge(self) -> None:
        assert final_of(self._run_dir) == self.expected, f"not the run that was never interrupted\n{self._said()}"
        origin = read_origin(self._run_dir)
        assert origin is not None
        assert (origin.step, origin.named) == (FORKED_AT, str(self._folder / "base"))
        begun = [(path, int(step)) for path, step in _RESUMED.findall(self._said())]
        steps = [step for path, step in begun if path.startswith(f"{self._run_dir}/")]
        assert steps == sorted(steps), f"it went back: {begun}"
        assert all(path.startswith(f"{self._run_dir}/") for path, _ in begun[len(begun) - len(steps) :]), begun
        self.finished += 1
        shutil.rmtree(self._run_dir)

    def _output(self) -> _Output:
        return _Output(self._folder / f"{self._run_dir.name}.log")

    def _said(self) -> str:
        return (self._folder / f"{self._run_dir.name}.log").read_text(errors="replace")[-20000:]

    def _started(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._environment[MARK]:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _kill_what_is_left(self) -> None:
        for process in self._started():
            process.kill()


class _Output:
    """A file that takes what commands say, as a descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._file = self._path.open("ab")
        return self._file.fileno()

    def __exit__(self, *_: object) -> None:
        self._file.close()
