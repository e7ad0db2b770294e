"""The memory of each pipeline rank of a plan, by purpose, before it is started. No torch."""

from __future__ import annotations

from trainer.config.plan import RunPlan
from trainer.config.schema import OffloadKind, PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.own_memory import CONTEXT, FRAGMENTS, HEAP, HEAP_BESIDE_MESSAGES, PROCESS, WRAPPED, OwnMemory
from trainer.planner.peer_memory import OVERHEADS, PeerMemory
from trainer.planner.prediction import StageMemory


class MemoryModel:
    """Memory of plans on one cluster. It keeps what plans have in common, so that a search is quick.

    Args:
        cluster: machines and the software that they run.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._of: OwnMemory | PeerMemory = OwnMemory(cluster.is_cpu)
        if cluster.software is not Software.trident:
            self._of = PeerMemory(cluster.software, cluster.virtual_stages)

    def stages(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of each pipeline rank, in order."""
        return self._of.stages(plan)

    def fullest(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of some pipeline ranks, among which are those that need most: quicker than all of them."""
        return self._of.fullest(plan)


def memory_constants(cluster: Cluster) -> dict[str, Constant]:
    """Return the numbers that the memory rests on, by name."""
    if cluster.software is Software.trident:
        if cluster.is_cpu:
            return {
                "memory.process": PROCESS,
                "memory.wrapped": WRAPPED,
                "memory.heap": HEAP,
                "memory.heap_tensor_parallel": HEAP_BESIDE_MESSAGES,
            }
        return {"memory.context": CONTEXT, "memory.fragments": FRAGMENTS}
    found = OVERHEADS[cluster.software]
    return {"memory.fixed": found.fixed, "memory.of_activations": found.of_activations}


def unchecked(plan: RunPlan, cluster: Cluster) -> tuple[str, ...]:
    """Return what of a plan lies outside of what memory and time were checked on, each a sentence."""
    found = []
    if cluster.software is not Software.trident:
        if plan.zero_stage >= 2 or plan.offload is not OffloadKind.none:
            found.append(f"The memory of ZeRO-{plan.zero_stage} or offload in {cluster.software.value} is not checked.")
        if plan.zero_stage == 3 and plan.tensor_parallel_size > 1:
            found.append(f"The time of ZeRO-3 beside tensor parallelism in {cluster.software.value} is not checked.")
        if plan.schedule.kind is PipelineSchedule.dualpipev:
            found.append(f"The memory of DualPipeV in {cluster.software.value} is counted as that of 1F1B.")
        return tuple(found)
    if not cluster.is_cpu:
        found.append("Memory was checked tensor by tensor on CPUs; what a GPU's allocator adds was not measured.")
    elif plan.execution.attention_dropout > 0:
        found.append("With attention dropout the heap of a CPU rank kept a third more than planned.")
    if plan.execution.frozen:
        found.append("Activations of frozen layers are counted as if they were trained: they need less.")
    if plan.offload is OffloadKind.nvme:
        found.append("The memory of offload to NVMe is not checked.")
    if plan.is_compiled:
        found.append("torch.compile keeps other activations than the layers that it compiles.")
    return tuple(found)
