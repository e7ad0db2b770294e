"""Rules about ranks: the mesh, the pipeline, the batch over it, and ZeRO with offload."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from trainer.config.elastic import Elastic
from trainer.config.keys import joined
from trainer.config.models import make_model
from trainer.config.pipeline_schedules import SCHEDULES, Schedule
from trainer.config.rules_common import Case, Rule, divisors, legal_tensor_parallel_sizes, neighbours, use
from trainer.config.schema import (
    AdamImplementation,
    CpuMatmul,
    DeviceKind,
    Dtype,
    NormKind,
    OffloadKind,
    Software,
)
from trainer.spec.parts import Activation


def _schedule(case: Case) -> tuple[Schedule, str]:
    """Return the schedule, and its name in messages."""
    kind = case.config.layout.pipeline_schedule
    return SCHEDULES[kind], f"layout.pipeline_schedule={kind.value}"


def _ranks_times(number: int, pp: int) -> str:
    """Return a multiple of the number of pipeline ranks, in words."""
    times = f"{number // pp} x " if number > pp else ""
    return f"{times}layout.pipeline_parallel_size"


def unresolved(case: Case) -> Iterator[str]:
    """A layout that is to be found was found."""
    if case.config.layout.auto:
        yield (
            "layout=auto is found by a run as it begins, and by `trident plan`; name a layout here, such as "
            "layout=tp2, or layout.auto=false"
        )


def world_size(case: Case) -> Iterator[str]:
    """The mesh fills the world that a launcher started."""
    layout, world = case.config.layout, case.world_size
    pp, tp, dp = layout.pipeline_parallel_size, layout.tensor_parallel_size, layout.data_parallel_size
    if world is None or pp * tp * case.dp == world:
        return
    factors = f"layout.pipeline_parallel_size ({pp}) x layout.tensor_parallel_size ({tp})"
    if isinstance(dp, int):
        factors += f" x layout.data_parallel_size ({dp})"
        found = f"{factors} = {pp * tp * dp} must equal the number of ranks ({world})"
    else:
        found = f"the number of ranks ({world}) must be divisible by {factors} = {pp * tp}"
    if world % (pp * tp) == 0:
        yield f"{found}; use layout.data_parallel_size={world // (pp * tp)}"
        return
    fits = neighbours(world, pp * tp)
    ways = " or ".join(f"{ranks} ranks (layout.data_parallel_size={ranks // (pp * tp)})" for ranks in fits)
    yield f"{found}; start {ways}"


def devices(case: Case) -> Iterator[str]:
    """This machine has a device for each rank that is started here."""
    layout, device, count = case.config.layout, case.config.runtime.device, case.device_count
    if count is None or device is DeviceKind.cpu:
        return
    if count == 0:
        if device is DeviceKind.cuda:
            yield "runtime.device=cuda needs a CUDA device, but this machine has none; use runtime.device=cpu"
        return
    pp, tp, dp = layout.pipeline_parallel_size, layout.tensor_parallel_size, case.dp
    if case.world_size is None and pp * tp * dp > count:
        yield (
            f"layout.pipeline_parallel_size ({pp}) x layout.tensor_parallel_size ({tp}) x layout.data_parallel_size "
            f"({dp}) = {pp * tp * dp} ranks must have a GPU each, but this machine has {count}; use a smaller layout, "
            "start it over several machines, or use runtime.device=cpu"
        )


def blocks_for_stages(case: Case) -> Iterator[str]:
    """Every stage holds a block."""
    layers, pp = case.config.model.num_layers, case.config.layout.pipeline_parallel_size
    schedule, name = _schedule(case)
    needed = schedule.stages(pp) if pp > 1 else pp
    if layers < needed:
        most = layers * pp // needed
        reason = f" for {name}" if needed > pp else ""
        way = (
            f"layout.pipeline_parallel_size <= {most}" if most > 1 or needed == pp else f"model.num_layers >= {needed}"
        )
        yield f"model.num_layers ({layers}) must be at least {_ranks_times(needed, pp)} ({needed}){reason}; use {way}"


def stage_boundaries(case: Case) -> Iterator[str]:
    """Explicit boundaries partition the blocks into pp non-empty stages."""
    layout, layers = case.config.layout, case.config.model.num_layers
    bounds, pp = layout.stage_boundaries, layout.pipeline_parallel_size
    if not bounds:
        return
    shown = list(bounds)
    if pp == 1:
        yield f"layout.stage_boundaries={shown} has no effect with layout.pipeline_parallel_size=1; set it to []"
        return
    schedule, name = _schedule(case)
    if not schedule.takes_boundaries:
        yield f"layout.stage_boundaries={shown} cannot be used with {name}; set it to []"
        return
    if len(bounds) != pp - 1:
        yield (
            f"layout.stage_boundaries must hold {pp - 1} block{'s' if pp > 2 else ''} "
            f"(layout.pipeline_parallel_size - 1), but holds {len(bounds)}"
        )
    if any(left >= right for left, right in pairwise(bounds)):
        yield f"layout.stage_boundaries must be strictly increasing, but is {shown}"
    if min(bounds) < 1 or max(bounds) >= layers:
        yield f"layout.stage_boundaries must lie in 1 to {layers - 1} (model.num_layers - 1), but is {shown}"


def batch_over_ranks(case: Case) -> Iterator[str]:
    """A step is a whole number of micro-batches on every replica."""
    batch, dp = case.config.batch, case.dp
    unit = batch.micro_batch_size * dp
    is_elastic = case.config.layout.data_parallel_size is Elastic.auto and case.world_size is not None
    if is_elastic and batch.global_batch_size % batch.micro_batch_size == 0 and batch.global_batch_size % unit:
        worlds = _worlds_near(case)
        yield (
            f"layout.data_parallel_size=auto makes {dp} replicas of {case.world_size} ranks, but "
            f"batch.global_batch_size ({batch.global_batch_size}) must be divisible by batch.micro_batch_size "
            f"({batch.micro_batch_size}) x {dp}; start {joined(worlds)} ranks"
        )
    elif batch.global_batch_size % unit:
        yield (
            f"batch.global_batch_size ({batch.global_batch_size}) must be divisible by batch.micro_batch_size "
            f"({batch.micro_batch_size}) x layout.data_parallel_size ({dp}) = {unit}; "
            f"{use(neighbours(batch.global_batch_size, unit), batch.global_batch_size)}"
        )


def _worlds_near(case: Case) -> list[int]:
    """Return the worlds just below and above this one whose replicas share the global batch evenly."""
    layout, batch = case.config.layout, case.config.batch
    replicas = divisors(batch.global_batch_size // batch.micro_batch_size)
    near = [max(n for n in replicas if n < case.dp), *[n for n in replicas if n > case.dp][:1]]
    return [n * layout.pipeline_parallel_size * layout.tensor_parallel_size for n in near]


def pipeline_schedule(case: Case) -> Iterator[str]:
    """The schedule has stages to order and micro-batches to fill them."""
    layout, batch = case.config.layout, case.config.batch
    pp, unit = layout.pipeline_parallel_size, batch.micro_batch_size * case.dp
    schedule, name = _schedule(case)
    fewest = schedule.fewest_micro_batches(pp)
    if pp == 1 and not schedule.has_effect_alone:
        yield (
            f"{name} has no effect with layout.pipeline_parallel_size=1; "
            "use layout.pipeline_parallel_size >= 2, or layout.pipeline_schedule=1f1b"
        )
    elif batch.global_batch_size % unit == 0 and batch.global_batch_size // unit < fewest:
        yield (
            f"{name} needs at least {_ranks_times(fewest, pp)} = {fewest} "
            f"micro-batches, but batch.global_batch_size ({batch.global_batch_size}) / ({unit} in a round) = "
            f"{batch.global_batch_size // unit}; use batch.global_batch_size >= {fewest * unit}"
        )
    if case.config.zero.offload is not OffloadKind.none and not schedule.takes_offload:
        yield (
            f"zero.offload={case.config.zero.offload.value} cannot be used with {name}; "
            "use zero.offload=none, or layout.pipeline_schedule=1f1b"
        )


def zero_stage(case: Case) -> Iterator[str]:
    """The stage fits the pipeline and the precision. Other software, whose published runs are planned, may differ."""
    if case.config.cluster.engine is not Software.trident:
        return
    stage, layout, dtype = case.config.zero.stage, case.config.layout, case.config.precision.dtype
    pp, tp = layout.pipeline_parallel_size, layout.tensor_parallel_size
    if stage in (2, 3) and pp > 1:
        sizes = legal_tensor_parallel_sizes(case)
        instead = f" with layout.tensor_parallel_size={pp * tp}" if pp * tp in sizes else ""
        yield (
            f"zero.stage={stage} needs layout.pipeline_parallel_size=1, but it is {pp}; "
            f"use zero.stage=1, or layout.pipeline_parallel_size=1{instead}"
        )
    if stage == 0 and dtype is not Dtype.fp32:
        yield (
            f"zero.stage=0 needs precision.dtype=fp32, but it is {dtype.value} (DeepSpeed would add up gradients in "
            f"{dtype.value}, or count tied weights twice); use zero.stage=1"
        )


def offload(case: Case) -> Iterator[str]:
    """State that leaves the device is sharded by ZeRO and has a place to go."""
    zero, kind = case.config.zero, case.config.zero.offload
    if kind is OffloadKind.cpu and zero.stage == 0:
        yield "zero.offload=cpu needs zero.stage >= 1, but it is 0; use zero.stage=1, or zero.offload=none"
    if kind is OffloadKind.nvme and zero.stage != 3:
        yield f"zero.offload=nvme needs zero.stage=3, but it is {zero.stage}; use zero.stage=3, or zero.offload=cpu"
    if kind is OffloadKind.nvme and not zero.nvme_path:
        yield "zero.offload=nvme needs zero.nvme_path; set it to a folder on a local NVMe disk"
    saves = case.config.checkpoint.every > 0 or case.config.checkpoint.save_final
    if kind is OffloadKind.nvme and zero.stage == 3 and zero.nvme_path and saves:
        yield (
            "zero.offload=nvme cannot be saved yet: the state on NVMe is not in the checkpoint format; "
            "use checkpoint=none, or zero.offload=cpu"
        )
    if zero.nvme_path is not None and kind is not OffloadKind.nvme:
        yield f"zero.nvme_path has no effect with zero.offload={kind.value}; use zero.offload=nvme, or leave it out"
    if zero.offload_parameters and zero.stage != 3:
        yield (
            f"zero.offload_parameters=true needs zero.stage=3, but it is {zero.stage}; "
            "use zero.stage=3, or zero.offload_parameters=false"
        )
    if zero.offload_parameters and kind is OffloadKind.none:
        yield (
            "zero.offload_parameters=true needs zero.offload=cpu or nvme, but it is none; "
            "use zero.offload=cpu, or zero.offload_parameters=false"
        )


def adam_implementation(case: Case) -> Iterator[str]:
    """The kernel runs where the optimizer state is."""
    chosen, kind = case.config.optimizer.implementation, case.config.zero.offload
    if chosen is AdamImplementation.deepspeed_cpu and kind is OffloadKind.none and not case.on_cpu:
        yield (
            "optimizer.implementation=deepspeed_cpu needs optimizer state in CPU memory; "
            "use zero.offload=cpu, runtime.device=cpu, or optimizer.implementation=auto"
        )
    if chosen is AdamImplementation.torch and kind is OffloadKind.nvme:
        yield (
            "zero.offload=nvme needs optimizer.implementation=deepspeed_cpu, but it is torch; "
            "use optimizer.implementation=auto"
        )


def replicas(case: Case) -> Iterator[str]:
    """There are copies to compare: with ZeRO-3 the data-parallel ranks hold none."""
    config, tp = case.config, case.config.layout.tensor_parallel_size
    copies = tp > 1 or (case.dp > 1 and config.zero.stage < 3)
    if config.runtime.check_replicas_every > 0 and not copies:
        yield (
            "runtime.check_replicas_every compares weights that several ranks hold, and has no effect with "
            f"layout.tensor_parallel_size={tp}, layout.data_parallel_size={case.dp} and "
            f"zero.stage={config.zero.stage}; leave it out"
        )


def compilation(case: Case) -> Iterator[str]:
    """Blocks are programs that torch.compile can make once and use for all of them."""
    config = case.config
    if not config.runtime.compile:
        return
    if config.runtime.recheck_every > 0:
        yield (
            "runtime.recheck_every looks at the results of single layers, which runtime.compile=true makes programs "
            "of; use runtime.compile=false, or runtime.recheck_every=0"
        )
    if config.zero.stage == 3:
        yield (
            "runtime.compile=true cannot be used with zero.stage=3: DeepSpeed's hooks inside the blocks break every "
            "program; use zero.stage=2, or runtime.compile=false"
        )
    if config.model.dropout > 0 or config.model.attention_dropout > 0:
        yield (
            "runtime.compile=true needs model.dropout=0 and model.attention_dropout=0, but they are "
            f"{config.model.dropout:g} and {config.model.attention_dropout:g}: each block has masks of its own and "
            "would be compiled anew; use runtime.compile=false"
        )


def liger(case: Case) -> Iterator[str]:
    """Liger's kernels run on a GPU, and the model has something for them to compute."""
    config = case.config
    if not config.runtime.liger:
        return
    model = config.model
    if case.on_cpu:
        yield "runtime.liger=true needs a GPU, but the ranks compute on the CPU; use runtime.liger=false"
    if config.runtime.compile:
        yield "runtime.liger=true has no effect in compiled blocks; use either it or runtime.compile=true"
    block = make_model(model, 1).blocks[0]
    norm, dtype = block.norm, config.precision.dtype
    # What is added to a weight in half precision is added in fp32, which Liger's kernels do not.
    in_fp32 = norm.offset != 0 and dtype is not Dtype.fp32
    has_norm = norm.weight and not in_fp32 and (norm.kind is NormKind.rmsnorm or norm.bias)
    is_swiglu = block.feed_forward.gated and block.feed_forward.activation is Activation.silu
    if not has_norm and not is_swiglu:
        without = "model.bias=false" if norm.weight else "model.norm_weight=false"
        if norm.weight and in_fp32:
            without = f"model.norm_offset={norm.offset:g} in {dtype.value}"
        yield (
            f"runtime.liger=true has no effect with model.norm={model.norm.value}, {without} and "
            f"model.activation={model.activation.value}: liger-kernel has kernels for RMSNorm, LayerNorm with a bias, "
            "and swiglu, and none for an offset in half precision; leave it out"
        )


def cpu_matmul(case: Case) -> Iterator[str]:
    """The library is only chosen for fp32 on a CPU."""
    config = case.config
    chosen = config.runtime.cpu_matmul
    if chosen is CpuMatmul.auto or (config.precision.dtype is Dtype.fp32 and not case.on_gpu):
        return
    found = "on a GPU" if case.on_gpu else f"with precision.dtype={config.precision.dtype.value}"
    yield (
        f"runtime.cpu_matmul={chosen.value} chooses a library for fp32 on a CPU, and has no effect {found}; "
        "leave it out"
    )


RULES: tuple[Rule, ...] = (
    unresolved,
    world_size,
    devices,
    blocks_for_stages,
    stage_boundaries,
    batch_over_ranks,
    pipeline_schedule,
    zero_stage,
    offload,
    adam_implementation,
    replicas,
    compilation,
    cpu_matmul,
    liger,
)
