"""The memory of each pipeline rank of a plan, by purpose, before it is started. No torch."""

from __future__ import annotations

from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, OffloadKind, PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.model_parts import ModelParts, RankParts
from trainer.planner.own_activations import Activations, activations_of
from trainer.planner.own_states import States, states_of
from trainer.planner.peer_memory import OVERHEADS, PeerMemory
from trainer.planner.prediction import StageMemory
from trainer.planner.published_formulas import chunks_in_flight

CONTEXT = Constant(
    1573 * 2.0**20, "CUDA's context on an A100, nvidia-smi: bigscience, tr11-176B-ml/chronicles-prequel.md"
)
FRAGMENTS = Constant(0.07, "share of tensors that a GPU's allocator holds besides: ROCm/Megatron-LM, issue 162")


class MemoryModel:
    """Memory of plans on one cluster. It keeps what plans have in common, so that a search is quick.

    Args:
        cluster: machines and the software that they run.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._peer: PeerMemory | None = None
        if cluster.software is not Software.trident:
            self._peer = PeerMemory(cluster.software, cluster.virtual_stages)
        self._parts = ModelParts(Software.trident)
        self._activations: dict[tuple[object, ...], tuple[Activations, ...]] = {}

    def stages(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of each pipeline rank, in order."""
        if self._peer is not None:
            return self._peer.stages(plan)
        ranks = self._parts.ranks(plan)
        found = zip(ranks, self._kept(plan, ranks), strict=True)
        return tuple(self._stage(plan, index, rank, kept) for index, (rank, kept) in enumerate(found))

    def _kept(self, plan: RunPlan, ranks: tuple[RankParts, ...]) -> tuple[Activations, ...]:
        key = (*self._parts.key(plan), plan.micro_batch_size, plan.sequence_parallel, plan.dtype, plan.device)
        found = self._activations.get(key)
        if found is None:
            found = self._activations[key] = tuple(activations_of(plan, rank) for rank in ranks)
        return found

    def _stage(self, plan: RunPlan, index: int, rank: RankParts, kept: Activations) -> StageMemory:
        states = states_of(plan, rank, plan.zero_stage, plan.offload)
        flights = in_flight(plan, index)
        activations = kept.shared + sum(count * size for count, size in zip(flights, kept.chunks, strict=True))
        messages = _messages(plan, flights)
        tensors = states.weights + states.gradients + states.master + states.moments + states.buckets + states.gathered
        temporary = activations + kept.working + kept.loss + messages
        overhead = 0
        if plan.device is not DeviceKind.cpu and not self._cluster.is_cpu:
            overhead = round(CONTEXT.value + FRAGMENTS.value * (tensors + temporary))
        return StageMemory(
            weights=states.weights,
            gradients=states.gradients,
            master=states.master,
            moments=states.moments,
            activations=activations,
            working=kept.working,
            loss=kept.loss,
            buckets=states.buckets + messages,
            gathered=states.gathered,
            overhead=overhead,
            init_peak=_start(states) + overhead,
            step_peak=tensors - states.buckets - states.gathered + states.step + overhead,
            host=states.host,
            in_flight=max(flights) if len(flights) == 1 else sum(flights),
        )


def _start(states: States) -> int:
    return states.weights + states.master + states.start


def in_flight(plan: RunPlan, index: int) -> tuple[int, ...]:
    """Return how many micro-batches' activations each stage of a pipeline rank holds at once.

    1F1B: min(p - i, m) (arXiv 2104.04473, section 2.2). DualPipeV: rank i has two stages, with 2 p - i and i + 1 of
    them, in the order of DeepSpeed's `DualPipeVSchedule`; a test runs that order.
    """
    pp = plan.pipeline_parallel_size
    if plan.schedule.kind is PipelineSchedule.dualpipev and pp > 1:
        return (2 * pp - index, index + 1)
    return (chunks_in_flight(index, pp, plan.num_micro_batches),)


def _messages(plan: RunPlan, flights: tuple[int, ...]) -> int:
    """Return hidden states and their gradients on the way between stages: one for each micro-batch in flight, and two.

    A stage keeps its output until it has its gradient.
    """
    if plan.pipeline_parallel_size == 1:
        return 0
    width = 4 if plan.dtype.value == "fp32" else 2
    hidden = plan.execution.seq_length * plan.micro_batch_size * plan.model.hidden_size * width // plan.sequence_shards
    return (sum(flights) + 2) * hidden


def memory_constants(cluster: Cluster) -> dict[str, Constant]:
    """Return the numbers that the memory rests on, by name."""
    if cluster.software is Software.trident:
        return {} if cluster.is_cpu else {"memory.context": CONTEXT, "memory.fragments": FRAGMENTS}
    found = OVERHEADS[cluster.software]
    return {"memory.fixed": found.fixed, "memory.of_activations": found.of_activations}


def unchecked(plan: RunPlan, cluster: Cluster) -> tuple[str, ...]:
    """Return what of a plan lies outside of what the memory was checked on, each a sentence."""
    found = []
    if cluster.software is not Software.trident:
        if plan.zero_stage >= 2 or plan.offload is not OffloadKind.none:
            found.append(f"The memory of ZeRO-{plan.zero_stage} or offload in {cluster.software.value} is not checked.")
        if plan.schedule.kind is PipelineSchedule.dualpipev:
            found.append(f"The memory of DualPipeV in {cluster.software.value} is counted as that of 1F1B.")
        return tuple(found)
    if not cluster.is_cpu:
        found.append("Memory was checked tensor by tensor on CPUs; what a GPU's allocator adds was not measured.")
    if plan.execution.frozen:
        found.append("Activations of frozen layers are counted as if they were trained: they need less.")
    if plan.offload is OffloadKind.nvme:
        found.append("The memory of offload to NVMe is not checked.")
    if plan.is_compiled:
        found.append("torch.compile keeps other activations than the layers that it compiles.")
    return tuple(found)
