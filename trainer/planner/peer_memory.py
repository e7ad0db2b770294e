"""Memory of a published run of Megatron-LM or Megatron-DeepSpeed, so that the planner can be held against it. No torch.

States and activations by the papers' formulas (`published_formulas`). What they leave out (the context of the device,
communicators, memory that the allocator holds for nobody) is one profile for each software.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.planner.constants import Constant
from trainer.planner.model_parts import ModelParts, RankParts, ends
from trainer.planner.prediction import StageMemory
from trainer.planner.published_formulas import ADAM, HALF, block_bytes, chunks_in_flight, input_bytes
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Block

_FITTED = (
    "fitted on 32 rows of BigScience's 176B search, 20 to 25 February 2022 (fp16), GB taken as 1,000 MiB: "
    "tests/unit/planner/rows/bigscience_memory.csv; its later rows are held out"
)


@dataclass(frozen=True)
class Overheads:
    """Bytes that a device holds besides the tensors that formulas count."""

    fixed: Constant
    """Bytes of every run."""
    of_activations: Constant
    """Further bytes for each byte of activations."""


OVERHEADS: Mapping[Software, Overheads] = {
    Software.deepspeed: Overheads(Constant(10.03e9, _FITTED), Constant(0.176, _FITTED)),
    Software.megatron: Overheads(
        Constant(1573 * 2.0**20, "CUDA's context on an A100: bigscience, tr11-176B-ml/chronicles-prequel.md"),
        Constant(0.0, "figures of torch's allocator, which count tensors"),
    ),
}


class PeerMemory:
    """Memory of each pipeline rank of a plan under other software. Keeps what plans have in common.

    Args:
        software: megatron or deepspeed.
        virtual_stages: chunks of each pipeline rank (interleaved 1F1B).
    """

    def __init__(self, software: Software, virtual_stages: int) -> None:
        self._software = software
        self._virtual_stages = virtual_stages
        self._parts = ModelParts(software)
        self._kept: dict[tuple[object, ...], tuple[RankParts, float, float]] = {}

    def stages(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of each pipeline rank."""
        return tuple(self._stage(plan, index, rank) for index, rank in enumerate(self._parts.ranks(plan)))

    def fullest(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of some pipeline ranks, among which are those that need most.

        Of ranks that hold the same layers the first one has most micro-batches in flight.
        """
        ranks = self._parts.ranks(plan)
        return tuple(self._stage(plan, index, ranks[index]) for index in ends((rank,) for rank in ranks))

    def _stage(self, plan: RunPlan, index: int, rank: RankParts) -> StageMemory:
        overheads = OVERHEADS[self._software]
        chunks = self._virtual_stages if self._software is Software.megatron else 1
        in_flight = chunks_in_flight(index, plan.pipeline_parallel_size, plan.num_micro_batches, chunks)
        once, working = self._activations(plan, rank)
        activations = once * in_flight / chunks
        loss, embedding = _loss(plan, rank), _embedding_masks(plan, rank) * in_flight / chunks
        states = _states(plan, rank, self._software)
        temporary = activations + working + embedding + loss
        overhead = overheads.fixed.value + overheads.of_activations.value * temporary
        return StageMemory(
            **{name: round(value) for name, value in states.items()},
            activations=round(activations),
            working=round(working + embedding),
            loss=round(loss),
            buckets=round(_dummy_gradients(plan, rank) if self._software is Software.megatron else 0),
            gathered=0,
            overhead=round(overhead),
            init_peak=0,
            # The gradients of a half-precision optimizer are cast to fp32 when activations are gone.
            step_peak=round(sum(states.values()) + _cast(plan, rank) + overhead),
            host=0,
            in_flight=-(-in_flight // chunks),
        )

    def _activations(self, plan: RunPlan, rank: RankParts) -> tuple[float, float]:
        """Return what one micro-batch leaves for backward, and the block that is computed again with full recompute."""
        key = (id(rank), plan.execution, plan.micro_batch_size, plan.sequence_parallel)
        found = self._kept.get(key)
        if found is None:
            how = (plan.execution, plan.micro_batch_size, plan.tensor_parallel_size, plan.sequence_parallel)
            blocks = [of for chunk in rank.chunks for of in chunk]
            if plan.execution.recompute is RecomputeKind.full:
                found = (
                    rank,
                    sum(n * input_bytes(one, *how) for one, n in blocks),
                    max(block_bytes(one, *how) for one, _ in blocks),
                )
            else:
                found = (
                    rank,
                    sum(n * block_bytes(one, *how) for one, n in blocks),
                    max(_gradients(plan, one) for one, _ in blocks),
                )
            self._kept[key] = found
        return found[1:]


def _gradients(plan: RunPlan, block: Block) -> float:
    """Return the gradients of activations that are alive in the widest place of backward: around the activation."""
    mlp = block.feed_forward
    tokens = plan.micro_batch_size * plan.execution.seq_length
    return HALF * tokens * (mlp.up.out_features + mlp.inner_size) / plan.tensor_parallel_size


def _loss(plan: RunPlan, rank: RankParts) -> float:
    """Return inputs of the final norm and of the head, 4sbh, and logits in half precision and in fp32, 6sbV/t."""
    if not rank.heads:
        return 0.0
    tokens = plan.micro_batch_size * plan.execution.seq_length
    hidden = 2 * HALF * tokens * plan.model.hidden_size / plan.sequence_shards
    rows = plan.execution.padded(plan.model.vocab_size)
    return hidden + (HALF + 4) * tokens * rows / plan.tensor_parallel_size


def _embedding_masks(plan: RunPlan, rank: RankParts) -> float:
    """Return the dropout mask behind the embedding of one micro-batch."""
    if not rank.embeds or plan.execution.dropout == 0:
        return 0.0
    return plan.micro_batch_size * plan.execution.seq_length * plan.model.hidden_size / plan.sequence_shards


def _states(plan: RunPlan, rank: RankParts, software: Software) -> dict[str, float]:
    """Return bytes of weights, gradients, master weights and moments.

    Megatron adds up fp16 gradients in fp16 and bf16 ones in fp32. DeepSpeed's BF16_Optimizer holds fp32 sums beside
    the gradients of the weights, both whole on every replica.
    """
    held, dtype, stage = rank.held, plan.dtype, plan.zero_stage
    replicas = plan.data_parallel_size
    width = 4 if dtype is Dtype.fp32 else HALF
    sums = 4 if dtype is Dtype.bf16 else 0
    gradients = {Software.deepspeed: width + sums, Software.megatron: max(width, sums)}[software]
    shared = held / replicas
    own = shared if stage >= 1 else held
    return {
        "weights": width * (shared if stage == 3 else held),
        "gradients": gradients * (shared if stage >= 2 else held),
        "master": (ADAM - 8) * own if width == HALF else 0.0,
        "moments": 8 * own,
    }


def _dummy_gradients(plan: RunPlan, rank: RankParts) -> float:
    """Return the tensors that Megatron hands to autograd in place of gradients that its GEMMs add to the fp32 sums.

    One in half precision for each shape of a matrix (`get_dummy_wgrad` of Transformer Engine; SimuMax, notes on B200).
    The lookup of an embedding needs none.
    """
    if plan.dtype is not Dtype.bf16:
        return 0.0
    embedding = rank.embedding_elements
    shapes = {one.numel for one in rank.parameters if one.group.decays and one.numel != embedding}
    return HALF * (sum(shapes) + (embedding if rank.heads else 0))


def _cast(plan: RunPlan, rank: RankParts) -> float:
    if plan.dtype is not Dtype.fp16:
        return 0.0
    return 4 * rank.held / (plan.data_parallel_size if plan.zero_stage >= 1 else 1)
