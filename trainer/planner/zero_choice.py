"""A sentence for the plan before a run: whether less ZeRO would take less memory. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, Dtype, OffloadKind
from trainer.planner.own_memory import OwnMemory

MIB = 1 << 20


def zero_bytes(memory: OwnMemory, plan: RunPlan, stage: int, offload: OffloadKind) -> int:
    """Return what the fullest pipeline rank holds on its device with a choice of ZeRO: states and buffers."""
    return max(states.held + states.gathered + states.buckets for states in memory.states(plan, stage, offload))


def cheaper_choice(plan: RunPlan) -> str | None:
    """Return a sentence on a choice of less ZeRO that takes less memory at this size; None if there is none.

    Activations are left out: they are the same with every stage.
    """
    memory = OwnMemory(on_cpu=plan.device is DeviceKind.cpu)
    mine = zero_bytes(memory, plan, plan.zero_stage, plan.offload)
    others = [(zero_bytes(memory, plan, stage, offload), stage, offload) for stage, offload in _less(plan)]
    cost, stage, offload = min(others, key=lambda other: other[0], default=(mine, 0, OffloadKind.none))
    if cost >= mine:
        return None
    chosen = _name(plan.zero_stage, plan.offload)
    return (
        f"{chosen} takes {mine / MIB:,.0f} MiB a rank for states and buffers, "
        f"more than {_name(stage, offload)} with {cost / MIB:,.0f} MiB: here it does not pay"
    )


def _less(plan: RunPlan) -> Iterator[tuple[int, OffloadKind]]:
    """Yield the choices with a lower stage, or without offload, that the run could make instead."""
    offload = plan.offload
    least = 0 if plan.dtype is Dtype.fp32 else 1
    for stage in range(least, plan.zero_stage + 1):
        for kind in {OffloadKind.none, offload} if stage else {OffloadKind.none}:
            if (stage, kind) != (plan.zero_stage, offload):
                yield stage, kind


def _name(stage: int, offload: OffloadKind) -> str:
    return f"ZeRO-{stage}" + (f" + {offload.value} offload" if offload is not OffloadKind.none else "")
