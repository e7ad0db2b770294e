"""Bytes that a rank's memory should hold, for layouts without tensor or pipeline parallelism. No torch.

Sources: model states as in ZeRO (arXiv 1910.02054, section 3); activations counted tensor by tensor as in arXiv
2205.05198, section 4, without dropout and without the scores, which a fused attention never keeps. Everything is
counted as if it were alive at once; in truth activations go while gradients come, so a single micro-batch needs less.
The memory that a GPU needs for tensors is in `gpu_bytes`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.config.ds_json import reduce_bucket_size
from trainer.config.plan import RunPlan
from trainer.config.schema import (
    DeviceKind,
    Dtype,
    OffloadKind,
)
from trainer.spec.execution import RecomputeKind

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits in a chunk of the fused loss, as in `trainer.tensor_parallel.fused_loss`, which would import torch."""
CONTEXT_BYTES = 2 << 30
"""Bytes that a process needs on a GPU besides tensors: CUDA's context, and workspaces of the libraries."""


@dataclass(frozen=True)
class Bytes:
    """One rank's memory, divided by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    """Moments, and the master weights if there are any."""
    activations: int
    loss: int
    """Head and cross-entropy."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Return it as plain values, the total included."""
        return {**asdict(self), "total": self.total}


def expected_bytes(plan: RunPlan) -> Bytes:
    """Return the bytes that a rank of this plan should hold."""
    count, stage, replicas = plan.model.parameter_count, plan.zero_stage, plan.data_parallel_size
    trained = plan.trained_parameters
    half = plan.dtype is not Dtype.fp32
    # Gradients are accumulated in fp32, and fp32 weights are their own master weights.
    masters = 4 if half else 0
    return Bytes(
        parameters=(2 if half else 4) * count // (replicas if stage == 3 else 1),
        gradients=4 * trained // (replicas if stage >= 2 else 1),
        optimizer=(8 + masters) * trained // (replicas if stage >= 1 else 1),
        activations=_activations(plan, 2 if half else 4),
        loss=_loss(plan, 2 if half else 4),
    )


def gpu_bytes(plan: RunPlan) -> int:
    """Return the most bytes that a rank's tensors should take on a GPU; `expected_bytes` divides them by purpose.

    Added are ZeRO's two reduce buckets, in fp32, and the flat copy of the gradients that it makes for the update, when
    activations and loss are gone. Offloaded state is on the host; gradients count although they leave bucket by bucket.
    """
    found = expected_bytes(plan)
    offloaded = plan.zero_stage > 0 and plan.offload is not OffloadKind.none
    states = found.parameters + found.gradients + (0 if offloaded else found.optimizer)
    buckets = flat = 0
    if plan.zero_stage > 0:
        buckets = 2 * 4 * reduce_bucket_size(plan)
        flat = 0 if offloaded else 4 * plan.trained_parameters // plan.data_parallel_size
    return states + max(found.activations + found.loss + buckets, flat)


def _activations(plan: RunPlan, width: int) -> int:
    """Return the bytes of activations that forward leaves for backward in the blocks."""
    length = plan.execution.seq_length
    tokens = plan.micro_batch_size * length
    # What alibi adds to the scores is one tensor for all layers that are alike.
    biases = sum(one.num_heads for one in {block.attention for block in plan.model.blocks} if one.alibi)
    constant = biases * length * length * width * (plan.micro_batch_size if plan.execution.documents else 1)
    if plan.execution.documents:
        # The mask of each kind of layer.
        kinds = {(block.attention.window, block.attention.alibi) for block in plan.model.blocks}
        constant += len(kinds) * plan.micro_batch_size * length * length
    kept = [block.kept.whole + block.kept.cut for block in plan.model.blocks]
    if plan.execution.recompute is RecomputeKind.full:
        # Every block's input, and the block that keeps most, which is being recomputed.
        return constant + tokens * width * (len(kept) * plan.model.hidden_size + max(kept))
    # Selective recomputation drops the scores, and a fused attention has none.
    return constant + tokens * width * sum(kept)


def _loss(plan: RunPlan, width: int) -> int:
    """Logits and their gradient; or, fused, the gradients of hidden and head, and one chunk of logits in fp32.

    In half precision a chunk's logits and their gradient are beside the fp32 ones.
    """
    hidden_size, rows = plan.model.hidden_size, plan.execution.padded(plan.model.vocab_size)
    tokens = plan.micro_batch_size * plan.execution.seq_length
    if not plan.execution.fused_loss:
        return tokens * rows * (width + 4)
    device = "cuda" if plan.device is DeviceKind.cuda else "cpu"
    chunk = min(CHUNK_ELEMENTS[device], tokens * rows) * (4 if width == 4 else 4 + 2 * width)
    return tokens * hidden_size * width + 4 * rows * hidden_size + chunk
