"""Reasons of the rules about layouts: why each exists. Data only.

A person who is told what must hold wants to know why before changing anything; `trident plan` and `trident train` say
it behind the rule.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config import rules_layout, rules_model
from trainer.config.rules_common import Rule

REASONS: Mapping[Rule, str] = {
    rules_layout.unresolved: "a search would begin anew in every process, and their layouts could differ",
    rules_layout.world_size: "every rank of the launched world needs a place in the mesh of pipeline, tensor and data",
    rules_layout.devices: "two ranks on one GPU share its memory and its time, and NCCL refuses them",
    rules_layout.blocks_for_stages: "a stage without a block would wait for the others in every micro-batch",
    rules_layout.stage_boundaries: "each pipeline rank computes one run of blocks, and all blocks must be computed",
    rules_layout.batch_over_ranks: "every replica must read as many sequences as the others, or gradients would be "
    "averages of different weights",
    rules_layout.pipeline_schedule: "a schedule orders micro-batches over stages, and needs enough of both",
    rules_layout.zero_stage: "a pipeline holds the gradients of all micro-batches until its last backward, so there is "
    "nothing that stages 2 and 3 could shard before; and half precision needs ZeRO's fp32 master weights",
    rules_layout.offload: "ZeRO decides which rank holds which part of the state, and offload moves that part",
    rules_layout.adam_implementation: "the optimizer computes where its state is",
    rules_layout.replicas: "copies can be compared only where there are copies",
    rules_layout.compilation: "a compiled block is one program, which hooks and masks of its own would break",
    rules_layout.cpu_matmul: "the choice is between two libraries for fp32 on a CPU",
    rules_layout.liger: "a kernel that the model has nothing for would be named and not used",
    rules_model.hidden_size_by_heads: "heads are equal parts of the width",
    rules_model.heads_by_key_value_heads: "each key/value head serves as many query heads as the others",
    rules_model.cut_over_tensor_ranks: "each tensor-parallel rank computes whole heads and an equal part of every "
    "matrix; unequal parts would let the others wait",
    rules_model.sequence_parallel_alone: "the sequence is sharded over the ranks of the tensor group",
}
"""Rule -> its reason, as a phrase."""
