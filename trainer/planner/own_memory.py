"""The memory of each pipeline rank of this product on DeepSpeed 0.19.8, by purpose. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.config.ds_json import chosen_bucket
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind, PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.planner.constants import Constant
from trainer.planner.model_parts import ModelParts, RankParts, ends
from trainer.planner.own_activations import Activations, activations_of
from trainer.planner.own_states import Choice, States, states_of
from trainer.planner.prediction import StageMemory
from trainer.planner.published_formulas import chunks_in_flight

CONTEXT = Constant(
    1573 * 2.0**20, "CUDA's context on an A100, nvidia-smi: bigscience, tr11-176B-ml/chronicles-prequel.md"
)
FRAGMENTS = Constant(0.07, "share of tensors that a GPU's allocator holds besides: ROCm/Megatron-LM, issue 162")
_RESIDENT = (
    "fitted on 6 of the layouts of `python -m benchmarks plan_memory` on an AMD EPYC, 2026-11-29; the others are held "
    "out"
)
PROCESS = Constant(55 * 2.0**20, f"libraries' own memory once they compute, ranks of a CPU: {_RESIDENT}")
WRAPPED = Constant(
    44 * 2.0**20, "modules that DeepSpeed imports with ZeRO: resident memory of a model of no size, 2026-11-29"
)
HEAP = Constant(
    0.27, f"share of activations and buffers that the C library's heap keeps free between them: {_RESIDENT}"
)
HEAP_BESIDE_MESSAGES = Constant(
    0.6, f"the same share where tensor-parallel ranks' messages come and go between them: {_RESIDENT}"
)
_GIVES_BACK = 2
"""ZeRO stage with which freed blocks above 8 MiB go back to the kernel (`engine.host_memory`): its heap has no holes of
that size, and none were measured."""


class OwnMemory:
    """Memory of plans. It keeps what plans have in common, so that a search is quick.

    Args:
        on_cpu: ranks compute on CPU cores.
    """

    def __init__(self, on_cpu: bool) -> None:
        self._on_cpu = on_cpu
        self._parts = ModelParts(Software.trident)
        self._activations: dict[tuple[object, ...], tuple[Activations, ...]] = {}
        self._rank_activations: dict[tuple[object, ...], tuple[RankParts, Activations]] = {}
        self._states: dict[tuple[object, ...], tuple[States, ...]] = {}

    def stages(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of each pipeline rank, in order."""
        return tuple(self._stage(plan, index, *of) for index, of in enumerate(self._ranks(plan)))

    def fullest(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of some pipeline ranks, among which are those that need most.

        Ranks that hold the same layers differ in their micro-batches in flight, which fall with the rank under 1F1B and
        are a straight line under DualPipeV: of each kind the first or the last one is the fullest.
        """
        ranks = self._ranks(plan)
        return tuple(self._stage(plan, index, *ranks[index]) for index in ends(ranks))

    def _ranks(self, plan: RunPlan) -> list[tuple[States, Activations]]:
        key = self._parts.key(plan)
        return list(zip(self._held(plan, key), self._kept(plan, key), strict=True))

    def states(self, plan: RunPlan, stage: int, offload: OffloadKind) -> tuple[States, ...]:
        """Return the states of each pipeline rank as they would be with another choice of ZeRO."""
        choice = Choice(stage, offload, self._on_cpu, self._parts.bucket(plan))
        ranks = self._parts.ranks(plan)
        found = {id(rank): states_of(plan, rank, choice) for rank in _distinct(ranks)}
        return tuple(found[id(rank)] for rank in ranks)

    def _held(self, plan: RunPlan, key: tuple[object, ...]) -> tuple[States, ...]:
        many = plan.num_micro_batches > 1
        choice = (plan.data_parallel_size, plan.zero_stage, plan.offload.value, plan.dtype.value, many)
        key = (*key, *choice, plan.offloads_parameters, chosen_bucket(plan))
        found = self._states.get(key)
        if found is None:
            found = self._states[key] = self.states(plan, plan.zero_stage, plan.offload)
        return found

    def _kept(self, plan: RunPlan, key: tuple[object, ...]) -> tuple[Activations, ...]:
        key = (*key, plan.micro_batch_size, plan.sequence_parallel, plan.dtype.value)
        found = self._activations.get(key)
        if found is None:
            ranks = self._parts.ranks(plan)
            kept = {id(rank): self._kept_by(plan, rank) for rank in _distinct(ranks)}
            found = self._activations[key] = tuple(kept[id(rank)] for rank in ranks)
        return found

    def _kept_by(self, plan: RunPlan, rank: RankParts) -> Activations:
        key = (id(rank), plan.execution, plan.micro_batch_size, plan.sequence_parallel, plan.dtype.value)
        found = self._rank_activations.get(key)
        if found is None:
            found = self._rank_activations[key] = (rank, activations_of(plan, rank, self._on_cpu))
        return found[1]

    def _stage(self, plan: RunPlan, index: int, states: States, kept: Activations) -> StageMemory:
        flights = in_flight(plan, index)
        activations = kept.shared + sum(count * size for count, size in zip(flights, kept.chunks, strict=True))
        buckets = states.buckets + _messages(plan, flights)
        temporary = states.gathered + buckets + activations + kept.working + kept.loss
        if self._on_cpu:
            share = HEAP if plan.tensor_parallel_size == 1 else HEAP_BESIDE_MESSAGES
            holes = 0.0 if plan.zero_stage == _GIVES_BACK else share.value * temporary
            from_start = WRAPPED.value if plan.zero_stage > 0 else 0.0
            overhead = round(PROCESS.value + from_start + holes)
        else:
            from_start = CONTEXT.value
            overhead = round(from_start + FRAGMENTS.value * (states.held + temporary))
        return StageMemory(
            weights=states.weights,
            gradients=states.gradients,
            master=states.master,
            moments=states.moments,
            activations=activations,
            working=kept.working,
            loss=kept.loss,
            buckets=buckets,
            gathered=states.gathered,
            overhead=overhead,
            init_peak=states.weights + states.master + states.start + round(from_start),
            step_peak=states.held + states.step + overhead,
            host=states.host,
            in_flight=sum(flights),
        )


def _distinct(ranks: Iterable[RankParts]) -> Iterable[RankParts]:
    """Return every object once: comparing what is in them would take longer than it saves."""
    return {id(rank): rank for rank in ranks}.values()


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
    width = 4 if plan.dtype is Dtype.fp32 else 2
    hidden = plan.execution.seq_length * plan.micro_batch_size * plan.model.hidden_size * width // plan.sequence_shards
    return (sum(flights) + 2) * hidden
