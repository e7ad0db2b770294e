"""Whatever a command does before its first step, a signal ends it soon, with the right code, and leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.command import Ended, Running, rows, trident, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

LIMIT_S = 10.0
"""Time to end. What this machine is slow by besides is in `SLOW`."""
SLOW = float(os.environ.get("TRIDENT_TEST_PATIENCE", "1"))
INTERPRETER_S = 0.15
"""In which Python itself starts: only then a signal does what it does to any program."""
SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "model=gpt_debug", "batch.global_batch_size=4", "runtime.device=cpu"),
    *("batch.micro_batch_size=2", "logging=local", "logging.console=plain", "train.steps=100000"),
)
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
SINGLE: tuple[str, ...] = ()
TWO_RANKS = ("layout=dp2",)
MOMENTS = 30
SEED = 20261129


def start_s(settings: Sequence[str], folder: Path) -> float:
    """Return how long a start takes to its first step, here and now."""
    with Running(trident("train", *SETTINGS, *settings, f"run_dir={folder / 'measure'}"), folder) as running:
        wait_until(lambda: len(rows(folder / "measure")) >= 1, 300, "the first step")
        return time.monotonic() - running.started


def asked_at(
    seconds: float,
    number: signal.Signals,
    settings: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> tuple[Ended, bool]:
    """Send a signal that long after the start; return how the command ended, and whether it had trained a step."""
    run_dir = folder / "R"
    command = trident("train", *SETTINGS, *settings, f"run_dir={run_dir}")
    with Running(command, folder, environment) as running:
        time.sleep(max(0.0, seconds - (time.monotonic() - running.started)))
        trained = bool(rows(run_dir))
        asked = time.monotonic()
        running.process.send_signal(number)
        ended = running.end(LIMIT_S * SLOW + 50)
        took = time.monotonic() - asked
        left = running.left_behind()
        assert left == [], f"left {left} when asked after {seconds:.2f} s"
    assert trained or took < LIMIT_S * SLOW, f"{took:.1f} s when asked after {seconds:.2f} s\n{ended.err}"
    return ended, trained or bool(rows(run_dir))


def check(ended: Ended, trained: bool, seconds: float, number: signal.Signals) -> None:
    """Check exit code and words."""
    told = f"asked after {seconds:.2f} s by {number.name}: {ended.code}\n{ended.out}{ended.err}"
    if trained:
        # From the first step on there is something to save, whoever asks.
        assert ended.code in (75, CODES[number]), told
        return
    if seconds < INTERPRETER_S * SLOW and "init_import_site" in ended.err:
        # Python itself was still starting, and says so.
        return
    by_interpreter = {-number} if seconds < INTERPRETER_S * SLOW else set()
    assert ended.code in {CODES[number], *by_interpreter}, told
    assert "Traceback" not in ended.err or ended.code < 0, told
    if ended.code > 0 and ended.err:
        assert f"asked to stop by {number.name} while " in ended.err, told


@pytest.mark.parametrize("settings", [SINGLE, TWO_RANKS], ids=["single", "two ranks"])
def test_asked_at_some_moments_before_the_first_step(settings: tuple[str, ...], tmp_path: Path) -> None:
    whole = start_s(settings, tmp_path)
    for number, share in ((signal.SIGTERM, 0.3), (signal.SIGINT, 0.8)):
        folder = tmp_path / f"{number.name}"
        folder.mkdir()
        check(*asked_at(share * whole, number, settings, folder), share * whole, number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("settings", [SINGLE, TWO_RANKS], ids=["single", "two ranks"])
def test_asked_at_any_moment_before_the_first_step(
    settings: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    whole, draw = start_s(settings, tmp_path), random.Random(f"{SEED} {settings} {number}")
    for index in range(MOMENTS):
        seconds = draw.uniform(0.0, 1.1 * whole)
        folder = tmp_path / str(index)
        folder.mkdir()
        check(*asked_at(seconds, number, settings, folder), seconds, number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_asked_while_a_kernel_is_compiled(number: signal.Signals, tmp_path: Path) -> None:
    """Compiler and all end too, and the next start compiles at once."""
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "kernels")}
    lock = tmp_path / "kernels" / "cpu_adam" / "lock"
    settings = ("zero=stage1_offload", f"run_dir={tmp_path / 'R'}")
    for _ in range(2):
        with Running(trident("train", *SETTINGS, *settings), tmp_path, environment) as running:
            wait_until(lambda: len(running.left_behind()) >= 2 and lock.exists(), 200, "a compiler")
            asked = time.monotonic()
            running.process.send_signal(number)
            ended = running.end(60)
            assert time.monotonic() - asked < LIMIT_S * SLOW
            assert running.left_behind() == []
        assert ended.code == CODES[number], ended.err
        assert f"asked to stop by {number.name} while compiling a kernel (cpu_adam)" in ended.err
        assert not lock.exists()
