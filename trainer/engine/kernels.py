"""Which kernel computes AdamW, and whether this machine can have it. No torch."""

from __future__ import annotations

import shutil

from trainer.config.plan import RunPlan
from trainer.config.schema import AdamImplementation, OffloadKind
from trainer.errors import ConfigError


def adam_implementation(plan: RunPlan) -> AdamImplementation:
    """Resolve `optimizer.implementation=auto`: DeepSpeed's CPU kernel for offloaded state, else torch."""
    chosen = plan.config.optimizer.implementation
    if chosen is not AdamImplementation.auto:
        return chosen
    offloaded = plan.config.zero.offload is not OffloadKind.none
    return AdamImplementation.deepspeed_cpu if offloaded else AdamImplementation.torch


def check_compiler(plan: RunPlan) -> None:
    """Check that DeepSpeed's CPU Adam can be compiled here, before any rank is started.

    Raises:
        ConfigError: it is wanted, but g++ or ninja is missing.
    """
    if adam_implementation(plan) is not AdamImplementation.deepspeed_cpu:
        return
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"optimizer.implementation=deepspeed_cpu compiles a C++ kernel and needs g++ and ninja, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on PATH",
            hints=["install a C++ compiler, or set optimizer.implementation=torch (slower, same numbers)"],
        )
