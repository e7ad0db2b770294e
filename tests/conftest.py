from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.garbage import look_seldom
from trainer.launcher.orphan import WATCH

# Most of what a process of tests has are modules.
look_seldom()
# Before anything imports deepspeed: ranks compute on the CPU, one thread each, and find the venv's ninja.
os.environ["OMP_NUM_THREADS"] = "1"
# A run of one rank has a thread for each core. Spinning until the next product, as one does that has the machine to
# itself, they would take it from the other tests: ten times the processor's time for small models.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["DS_ACCELERATOR"] = "cpu"
for _name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
    del os.environ[_name]
os.environ["WANDB_MODE"] = "offline"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("TRIDENT_CACHE", str(Path(tempfile.gettempdir()) / f"trident_test_cache_{os.getuid()}"))
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)

# A shell without job control ignores the one, nohup the other; programs that tests start and interrupt inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_OF_PYTEST = "PYTEST_CURRENT_TEST"
OPTIONAL = {"matrix": "--run-matrix", "slow": "--run-slow", "container": "--run-containers"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-matrix", action="store_true", help="run the whole parity and resume matrices (hours)")
    parser.addoption("--parity-report", type=Path, help="append a JSON line for each case of the matrix to this file")
    parser.addoption("--chaos-kills", type=int, default=20, help="runs killed at a random moment")
    parser.addoption("--chaos-write-kills", type=int, default=30, help="runs killed inside a save or a resume")
    parser.addoption("--chaos-in-a-row", type=int, default=10, help="kills of one run, one after the other")
    parser.addoption("--chaos-refusals", type=int, default=20, help="writes that the disk refuses")
    parser.addoption("--chaos-full-disks", type=int, default=3, help="small disks that fill up, in each layout")
    parser.addoption("--chaos-seed", help="do the same kills again; the seed is printed")
    parser.addoption("--chaos-report", type=Path, help="append a JSON line for each campaign to this file")
    parser.addoption("--run-slow", action="store_true", help="run tests that take minutes")
    parser.addoption("--run-containers", action="store_true", help="build the images and run them (podman, root)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let `-n 3` share out the tests by what they need."""
    from tests.helpers.sides import Sides

    return Sides(config, log)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    # Libraries tell of objects that are still there at the end.
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        wanted = all(config.getoption(option) for marker, option in OPTIONAL.items() if item.get_closest_marker(marker))
        (kept if wanted and (_has_gpu() or not item.get_closest_marker("gpu")) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """Give each test the environment that the one before had: libraries such as wandb set variables in it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {_OF_PYTEST}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != _OF_PYTEST})


@pytest.fixture(autouse=True, scope="module")
def _nothing_watches() -> Iterator[None]:
    """Let no test leave a thread behind that would end this process when it takes a launcher for gone."""
    yield
    for thread in threading.enumerate():
        if thread.name == WATCH:
            thread.join(5.0)
            assert not thread.is_alive(), "a test has left a thread behind that watches this process's launcher"


@pytest.fixture
def parity_report(request: pytest.FixtureRequest) -> Path | None:
    report = request.config.getoption("--parity-report")
    assert report is None or isinstance(report, Path)
    return report


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
