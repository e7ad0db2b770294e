"""The DeepSpeed config of a plan. The only file that spells DeepSpeed's keys. No torch, no deepspeed.

Everything that DeepSpeed would decide by itself and that changes numbers is set here: gradients are accumulated in fp32
for every precision (its default is the model's own), stage-to-stage tensors travel whole (its default shards them over
tensor-parallel ranks and gathers them again, once a micro-batch), and nothing prints, times or logs unasked.
Every key was checked against DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trainer.config.places import local_path
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind
from trainer.spec.model import LayerKind
from trainer.spec.tensors import TensorSpec

BUCKETS_OF_A_MODEL = 16
"""Collectives in which the gradients of a model are reduced, where the config does not say how large one is."""
BUCKETS = (1_000_000, 50_000_000)
"""Smallest and largest size of a bucket, in elements: below, latency counts; above, nothing is gained."""
STEPPED_PARTS = 8
"""Parts in which ZeRO-3 steps a model."""


def deepspeed_json(plan: RunPlan) -> dict[str, object]:
    """Return the config for `deepspeed.initialize`. The optimizer is ours, so it is not in it.

    Args:
        plan: plan of a config that `validate` has accepted.
    """
    config = plan.config
    result: dict[str, object] = {
        "train_batch_size": config.batch.global_batch_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": plan.num_micro_batches,
        # Without ZeRO DeepSpeed's norm leaves out parameters of later stages; our engine clips there.
        "gradient_clipping": config.optimizer.grad_clip if plan.zero_stage > 0 else 0.0,
        "zero_optimization": _zero(plan),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "wall_clock_breakdown": False,  # with PP > 1 it crashes: the backward timer is started twice
        "timers": {"throughput": {"enabled": False}},  # it syncs host and device in every micro-batch
    }
    result |= _precision(plan)
    if plan.uses_pipeline_engine:
        result["pipeline"] = {
            "pipe_partitioned": False,
            "grad_partitioned": False,
            "use_reentrant": False,
            "activation_checkpoint_interval": 0,
        }
    return result


def _precision(plan: RunPlan) -> dict[str, object]:
    precision = plan.config.precision
    if precision.dtype is Dtype.bf16:
        # bf16 has the range of fp32; looking for overflow would sync the host with the device every step.
        return {"bf16": {"enabled": True, "check_grad_overflow": False}}
    if precision.dtype is Dtype.fp16:
        dynamic = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": precision.initial_scale_power,
            "loss_scale_window": precision.loss_scale_window,
        }
        return {"fp16": dynamic}
    return {}


def _zero(plan: RunPlan) -> dict[str, object]:
    zero = plan.config.zero
    if plan.zero_stage == 0:
        # The engine averages gradients bucket by bucket. DeepSpeed's own bucket has 500M elements: a second copy of all
        # gradients of every smaller model.
        return {"stage": 0, "reduce_bucket_size": reduce_bucket_size(plan)}
    result: dict[str, object] = {
        "stage": zero.stage,
        "reduce_bucket_size": reduce_bucket_size(plan),
        "allgather_bucket_size": reduce_bucket_size(plan),
        "contiguous_gradients": True,
        "overlap_comm": zero.overlap_comm and not plan.uses_pipeline_engine,
    }
    if zero.offload is not OffloadKind.none:
        result["offload_optimizer"] = _place(plan)
    if zero.stage == 3:
        hidden_size, block = plan.model.hidden_size, block_elements(plan)
        result |= {
            # DeepSpeed's limits of 1e9 keep every smaller model gathered from its first use on. One block is computed
            # while the next one is gathered.
            "stage3_prefetch_bucket_size": block,
            "stage3_max_live_parameters": max(2 * block, largest_parameter(plan)),
            "stage3_max_reuse_distance": 0,
            # The optimizer steps one part after the other, and needs a copy of the gradients of one part.
            "sub_group_size": max(matrix_elements(plan) // STEPPED_PARTS, largest_parameter(plan)),
            # Vectors (norms, biases) stay whole: gathering each of them costs more than it saves.
            "stage3_param_persistence_threshold": 10 * hidden_size,
        }
        if zero.offload_parameters:
            result["offload_param"] = _place(plan)
            if zero.offload is OffloadKind.nvme:
                # Every swap buffer must hold the largest parameter.
                result["offload_param"] = {**_place(plan), "buffer_size": largest_parameter(plan)}
    return result


def _place(plan: RunPlan) -> dict[str, object]:
    zero = plan.config.zero
    place: dict[str, object] = {"device": zero.offload.value}
    if zero.offload is OffloadKind.nvme:
        place["nvme_path"] = local_path(str(zero.nvme_path), "zero.nvme_path")
    return place


def reduce_bucket_size(plan: RunPlan) -> int:
    """Return how many elements are reduced in one collective: what the config says, or by the size of the model.

    A bucket is a buffer, and there may be two: a large one beside a small model costs more than sharding saves. Even,
    because DeepSpeed asks for that.
    """
    chosen = chosen_bucket(plan)
    return bucket_of(matrix_elements(plan)) if chosen is None else chosen


def bucket_of(elements: int) -> int:
    """Return the size of a bucket for a model with so many elements of matrices on a tensor-parallel rank."""
    least, most = BUCKETS
    return max(least, min(most, elements // BUCKETS_OF_A_MODEL)) // 2 * 2


def chosen_bucket(plan: RunPlan) -> int | None:
    """Return the size of a bucket that the config says; None: it follows from the model's."""
    return plan.config.zero.reduce_bucket_size


def _matrices(tensors: Iterable[TensorSpec], plan: RunPlan) -> int:
    """Return the elements of matrices on one tensor-parallel rank. Vectors are left out: they are few."""
    size, unit = plan.tensor_parallel_size, plan.execution.vocab_unit
    return sum(tensor.local_numel(size, unit) for tensor in tensors if tensor.is_matrix)


def block_elements(plan: RunPlan) -> int:
    """Return the matrix elements of the largest block on one tensor-parallel rank."""
    return _kept(plan, "block", lambda: max(size for _, size in _blocks(plan)))


def matrix_elements(plan: RunPlan) -> int:
    """Return the matrix elements of the whole model on one tensor-parallel rank; the head counts even where tied."""
    rows = plan.execution.padded(plan.model.vocab_size)
    vocabulary = 2 * rows * plan.model.hidden_size // plan.tensor_parallel_size
    return _kept(plan, "all", lambda: sum(count * size for count, size in _blocks(plan))) + vocabulary


def largest_parameter(plan: RunPlan) -> int:
    """Return the number of elements of the largest parameter on one tensor-parallel rank."""
    size, unit = plan.tensor_parallel_size, plan.execution.vocab_unit
    tensors = (tensor for layer, _ in plan.model.kinds for tensor in layer.tensors())
    return _kept(plan, "largest", lambda: max(tensor.local_numel(size, unit) for tensor in tensors))


def _blocks(plan: RunPlan) -> Iterable[tuple[int, int]]:
    """Yield how many blocks there are of each kind, and the matrix elements of one on one tensor-parallel rank."""
    for layer, count in plan.model.kinds:
        if layer.kind is LayerKind.block:
            yield count, _matrices(layer.tensors(), plan)


def _kept(plan: RunPlan, name: str, compute: Callable[[], int]) -> int:
    """Return a sum over the model's tensors, computed once: a search asks for it thousands of times."""
    key = (name, plan.tensor_parallel_size, plan.execution.vocab_unit)
    sums = plan.model.sums
    if key not in sums:
        sums[key] = compute()
    return sums[key]
