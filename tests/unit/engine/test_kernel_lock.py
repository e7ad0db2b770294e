from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import OffloadKind, TridentConfig, ZeroConfig
from trainer.engine.kernels import LONGEST_COMPILATION_S, check_compiler
from trainer.errors import ConfigError


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def plan(offload: OffloadKind) -> RunPlan:
    return make_plan(TridentConfig(zero=ZeroConfig(stage=1, offload=offload)), 64)


def test_what_a_killed_compilation_left_is_named(lock: Path) -> None:
    long_ago = time.time() - LONGEST_COMPILATION_S - 60
    os.utime(lock, (long_ago, long_ago))
    with pytest.raises(ConfigError, match="must not be locked") as caught:
        check_compiler(plan(OffloadKind.cpu))
    assert caught.value.hints == (f"delete {lock}",)
    check_compiler(plan(OffloadKind.none))


def test_a_compilation_under_way_is_waited_for(lock: Path) -> None:
    check_compiler(plan(OffloadKind.cpu))
