"""The kernel that computes AdamW, and the check that this machine can have the kernels a run asks for. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from trainer.config.schema import AdamImplementation, OffloadKind, OptimizerConfig, RuntimeConfig, StepRule, ZeroConfig
from trainer.engine.kernel_lock import QUIET_S, Owner, owner_of, quiet_s
from trainer.errors import ConfigError

KERNELS = ("cpu_adam", "async_io", "utils")
"""Kernels that DeepSpeed compiles for offloaded state."""


def adam_implementation(optimizer: OptimizerConfig, zero: ZeroConfig) -> AdamImplementation:
    """Resolve `optimizer.implementation=auto`: DeepSpeed's CPU kernel for offloaded state of AdamW, else torch."""
    if optimizer.kind is not StepRule.adamw:
        return AdamImplementation.torch
    if optimizer.implementation is not AdamImplementation.auto:
        return optimizer.implementation
    offloaded = zero.offload is not OffloadKind.none
    return AdamImplementation.deepspeed_cpu if offloaded else AdamImplementation.torch


def check_compiler(optimizer: OptimizerConfig, zero: ZeroConfig, runtime: RuntimeConfig) -> None:
    """Check that the kernels this run compiles can be compiled here, before any rank is started.

    Raises:
        ConfigError: DeepSpeed's CPU Adam is wanted, but g++ or ninja is missing, or their folder cannot be used;
            runtime.compile=true, but there is no C++ compiler; runtime.liger=true, but no liger-kernel.
    """
    if runtime.liger and find_spec("liger_kernel") is None:
        raise ConfigError(
            "runtime.liger=true needs the package liger-kernel, but it is not installed",
            hints=["pip install 'trident-trainer[liger]', or set runtime.liger=false"],
        )
    if runtime.compile and shutil.which(os.environ.get("CXX") or "g++") is None:
        raise ConfigError(
            f"runtime.compile=true needs a C++ compiler, but {os.environ.get('CXX') or 'g++'} is not on PATH",
            hints=["install g++ (or set CXX), or set runtime.compile=false"],
        )
    if adam_implementation(optimizer, zero) is not AdamImplementation.deepspeed_cpu:
        return
    problem = kernel_folder_problem(extensions_folder(os.environ))
    if problem is not None:
        raise problem
    compiler = (os.environ.get("CXX") or "g++").split()[0]
    missing = [tool for tool in (compiler, "ninja") if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"optimizer.implementation=deepspeed_cpu compiles a C++ kernel and needs {compiler} and ninja, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH",
            hints=["install a C++ compiler, or set optimizer.implementation=torch (slower, same numbers)"],
        )


def extensions_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder below which torch puts the kernels that it compiles."""
    named = environ.get("TORCH_EXTENSIONS_DIR")
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(named or f"{cache}/torch_extensions").expanduser()


def kernel_folder_problem(root: Path) -> ConfigError | None:
    """Return what would end each rank: a folder that is read-only, or a lock that is never released; None if nothing.

    A lock whose owner is known to be gone is no problem: it is taken over (`engine.kernel_lock`).
    """
    locks = [lock for name in KERNELS for lock in root.glob(f"**/{name}/lock")]
    for lock in locks:
        silent_s = quiet_s(lock)
        if owner_of(lock) is Owner.unknown and silent_s > QUIET_S:
            return ConfigError(
                f"the cache of compiled kernels must not be locked, but {lock} is {silent_s / 60:.0f} minutes old, and "
                "nobody can tell whose it is: a compilation was killed, and every other one would wait for it",
                hints=[f"if nothing compiles there, delete {lock}", "or set TORCH_EXTENSIONS_DIR to another folder"],
            )
    nearest = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)) and not any(root.glob("**/cpu_adam/*.so")):
        named = "TORCH_EXTENSIONS_DIR" if os.environ.get("TORCH_EXTENSIONS_DIR") else "the default"
        return ConfigError(
            "the folder of compiled kernels must be one that can be written, or hold them, but "
            f"{root} ({named}) is neither",
            hints=["set TORCH_EXTENSIONS_DIR to another folder, or optimizer.implementation=torch (slower)"],
        )
    return None
