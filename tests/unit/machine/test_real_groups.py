"""Control groups that the kernel of this machine really makes, where it lets us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SYS = Path("/sys/fs/cgroup")
ASK = """
import os, subprocess, sys
from trainer.machine import OomKills, cpu_seconds, memory_limit, usable_cores
kills = OomKills()
limit = memory_limit()
print(usable_cores(), limit and limit.limit_bytes, cpu_seconds() is not None)
if "fill" in sys.argv:
    print(subprocess.run([sys.executable, "-c", "bytearray(1 << 30)"]).returncode)
    print(kills.hint())
"""
Asked = Callable[..., list[str]]


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    """Run `ASK` in groups that are limited as said; keyword: controller and file, with `__` between them."""
    name = f"trident-test-{os.getpid()}"
    made: list[Path] = []

    def ask(*words: str, **limits: str) -> list[str]:
        for key, value in limits.items():
            controller, _, file = key.partition("__")
            folder = SYS / controller / name
            try:
                folder.mkdir(exist_ok=True)
                made.append(folder)
                (folder / f"{controller}.{file}").write_text(value)
            except OSError as error:
                pytest.skip(f"control groups of version 1 cannot be made here: {error}")
        script = "".join(f"echo $$ >{folder}/cgroup.procs && " for folder in made) + 'exec "$@"'
        command = ["sh", "-c", script, "sh", sys.executable, "-c", ASK, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    yield ask
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def test_a_quota_of_the_kernel(asked: Asked) -> None:
    assert asked(cpu__cfs_period_us="100000", cpu__cfs_quota_us="120000") == ["1 None True"]


def test_a_kill_of_the_kernel(asked: Asked) -> None:
    first, code, hint = asked("fill", memory__limit_in_bytes=str(256 << 20))
    assert first.split()[1] == str(256 << 20)
    assert code == "-9"
    assert "of this container or job, whose limit is 0.25 GiB" in hint
