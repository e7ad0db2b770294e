"""Which kernel computes AdamW, and whether this machine can have what a run wants of it. No torch."""

from __future__ import annotations

import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.config.schema import AdamImplementation, OffloadKind
from trainer.errors import ConfigError

LONGEST_COMPILATION_S = 900.0
"""The kernel takes about a minute; a lock that is older than this belongs to nobody."""


def adam_implementation(plan: RunPlan) -> AdamImplementation:
    """Resolve `optimizer.implementation=auto`: DeepSpeed's CPU kernel for offloaded state, else torch."""
    chosen = plan.config.optimizer.implementation
    if chosen is not AdamImplementation.auto:
        return chosen
    offloaded = plan.config.zero.offload is not OffloadKind.none
    return AdamImplementation.deepspeed_cpu if offloaded else AdamImplementation.torch


def check_compiler(plan: RunPlan) -> None:
    """Check that what this run compiles can be compiled here, before any rank is started.

    Raises:
        ConfigError: DeepSpeed's CPU Adam is wanted, but g++ or ninja is missing, or an earlier compilation was killed;
            runtime.compile=true, but there is no C++ compiler; runtime.liger=true, but no liger-kernel.
    """
    if plan.config.runtime.liger and find_spec("liger_kernel") is None:
        raise ConfigError(
            "runtime.liger=true needs the package liger-kernel, but it is not installed",
            hints=["pip install 'trident-trainer[liger]', or set runtime.liger=false"],
        )
    if plan.config.runtime.compile and shutil.which(os.environ.get("CXX") or "g++") is None:
        raise ConfigError(
            f"runtime.compile=true needs a C++ compiler, but {os.environ.get('CXX') or 'g++'} is not on PATH",
            hints=["install g++ (or set CXX), or set runtime.compile=false"],
        )
    if adam_implementation(plan) is not AdamImplementation.deepspeed_cpu:
        return
    _check_lock()
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"optimizer.implementation=deepspeed_cpu compiles a C++ kernel and needs g++ and ninja, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH",
            hints=["install a C++ compiler, or set optimizer.implementation=torch (slower, same numbers)"],
        )


def _check_lock() -> None:
    """Notice what a killed compilation leaves behind: every later one would wait for it for ever."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(named) if named else Path("~/.cache/torch_extensions").expanduser()
    for lock in sorted(root.glob("**/cpu_adam/lock")):
        try:
            age_s = time.time() - lock.stat().st_mtime
        except OSError:
            continue
        if age_s > LONGEST_COMPILATION_S:
            raise ConfigError(
                f"the cache of compiled kernels must not be locked, but {lock} is {age_s / 60:.0f} minutes old: a "
                "compilation was killed, and every other one would wait for it",
                hints=[f"delete {lock}"],
            )
