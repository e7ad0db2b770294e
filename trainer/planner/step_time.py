"""The seconds of a step, part by part: `TimeModel`. No torch.

Compute is `kernels`, links are `links`; here they are put together as the software does: layers of a pipeline rank, the
schedule of micro-batches, gradients and weights over the data axis, the optimizer.

Pipeline ranks wait for their messages, since both DeepSpeed's engine and Megatron's non-overlapped schedules block in
them: a message counts in forward and in backward of a micro-batch on every rank. With stages that take t_i for forward
and backward together a step of 1F1B takes sum(t_i) + (m - 1) max(t_i), which is (m + p - 1) t for equal stages (arXiv
2104.04473, section 2.2); with v interleaved chunks the time to fill and drain is divided by v.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trainer.config.ds_json import reduce_bucket_size
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind, PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.kernels import Costs, Kernels, all_costs
from trainer.planner.links import Places, Wires, places
from trainer.planner.prediction import StepTime
from trainer.planner.profile import Collective, Profile
from trainer.planner.shares import rank_layers
from trainer.planner.work import FP32_BYTES, element_bytes, tokens
from trainer.spec.model import Layer

ADAM_BYTES = 28
"""Bytes that AdamW moves for each fp32 element: gradient, weight and two moments are read, the last three written."""
GRADIENT_PASSES = 2
"""Times that all gradients of a rank are read or written besides: for their norm, and as they are set to zero."""
DEEPSPEED_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once by default."""


@dataclass(frozen=True)
class RankTime:
    """Seconds of a pipeline rank for one micro-batch, messages left out."""

    forward_s: float
    backward_s: float
    """Recomputation included."""


@dataclass(frozen=True)
class TimedStep:
    """A predicted step."""

    time: StepTime
    bubble_fraction: float
    """Share of the pipeline's time in which the critical rank waits for others: 0 to 1."""
    ranks: tuple[RankTime, ...]
    """Each pipeline rank, in order."""
    message_s: float
    """Seconds of one message between neighbouring stages."""


@dataclass(frozen=True)
class _Pipeline:
    """Seconds of the part of a step that micro-batches go through."""

    total: float
    messages: float
    critical: int


class TimeModel:
    """Predicts the time of a step. An instance keeps what candidates of a search have in common."""

    def __init__(self, cluster: Cluster, profile: Profile) -> None:
        """Keep machines and profile."""
        self._cluster = cluster
        self._profile = profile
        self._kernels = Kernels(cluster, profile)
        # Models are compared by identity, which is quick; they are kept so that no other one gets the same identity.
        self._models: dict[int, object] = {}
        self._layers: dict[tuple[object, ...], tuple[tuple[Layer, ...], ...]] = {}
        self._costs: dict[tuple[object, ...], tuple[Costs, ...]] = {}
        self._buckets: dict[tuple[object, ...], int] = {}
        self._places: dict[tuple[int, int, int], Places] = {}

    @property
    def kept(self) -> int:
        """Number of distinct results that it keeps: candidates that share them cost little."""
        return len(self._layers) + len(self._costs) + len(self._buckets) + len(self._places)

    def step(self, plan: RunPlan, exact: bool = True) -> TimedStep:
        """Return the time of one optimizer step.

        Args:
            plan: numbers of the run.
            exact: simulate the schedule's events; otherwise the closed form, which is quick.
        """
        self._models[id(plan.model)] = plan.model
        costs = self._rank_costs(plan)
        where = self._where(plan)
        wires = self._wires(plan)
        count = plan.num_micro_batches
        message = self._message(plan, wires, where)
        pipeline = self._pipeline(plan, costs, message)
        exposed, hidden = self._data_parallel(plan, costs, wires, where)
        rank = costs[pipeline.critical]
        extra = self._profile.micro_batch_s.value
        parts = {
            "gemm": count * rank.gemm,
            "attention": count * rank.attention,
            "elementwise": count * rank.elementwise,
            "recompute": count * rank.recompute,
            "launch": count * (rank.launch + extra) + self._profile.step_s.value,
            "tensor_parallel": count * rank.tensor_parallel,
            "pipeline": pipeline.messages,
        }
        busy = count * (rank.forward + rank.backward + extra) + pipeline.messages
        crowded = self._crowded(plan, costs, pipeline.total)
        if crowded > 1.0:
            parts = {name: crowded * value for name, value in parts.items()}
            busy *= crowded
        total = max(pipeline.total * crowded, busy)
        bubble = total - busy
        optimizer, offload = self._optimizer(plan, costs, wires)
        time = StepTime(
            **parts,
            data_parallel=exposed,
            bubble=bubble,
            optimizer=optimizer,
            offload=offload,
            data_parallel_hidden=hidden,
        )
        ranks = tuple(RankTime(one.forward, one.backward) for one in costs)
        return TimedStep(time, bubble / total, ranks, message)

    # What candidates share.

    def _rank_costs(self, plan: RunPlan) -> tuple[Costs, ...]:
        """Return the costs of each pipeline rank for one micro-batch."""
        pp = plan.pipeline_parallel_size
        stages_key = (id(plan.model), plan.execution, pp, plan.schedule.kind, plan.stage_boundaries)
        share = self._share(plan)
        group = self._where(plan).tensor
        kind = (plan.dtype, plan.micro_batch_size, plan.sequence_parallel, plan.zero_stage == 3, share)
        key = (*stages_key, group, kind)
        if key not in self._costs:
            owned = self._layers.get(stages_key)
            if owned is None:
                owned = self._layers[stages_key] = rank_layers(plan, self._cluster.software)
            self._costs[key] = self._sums(plan, owned, share)
        return self._costs[key]

    def _sums(self, plan: RunPlan, owned: tuple[tuple[Layer, ...], ...], share: float) -> tuple[Costs, ...]:
        wires, group = self._wires(plan), self._where(plan).tensor
        by_name = bool(plan.execution.frozen)
        found: dict[object, Costs] = {}
        results = []
        for layers in owned:
            kinds = Counter(layer.name if by_name else (layer.kind, id(layer.spec)) for layer in layers)
            one_of = {layer.name if by_name else (layer.kind, id(layer.spec)): layer for layer in layers}
            for key, layer in one_of.items():
                if key not in found:
                    found[key] = self._kernels.layer(plan, layer, share, wires, group)
            results.append(all_costs((found[key], count) for key, count in kinds.items()))
        return tuple(results)

    def _where(self, plan: RunPlan) -> Places:
        key = (plan.pipeline_parallel_size, plan.data_parallel_size, plan.tensor_parallel_size)
        if key not in self._places:
            self._places[key] = places(*key, self._cluster)
        return self._places[key]

    # CPU ranks share the cores of their machine.

    def _ranks_here(self, plan: RunPlan) -> int:
        return min(plan.world_size, self._cluster.devices_per_node)

    def _threads(self, plan: RunPlan, cores: int) -> int:
        """Return the threads of a rank, as `trainer.engine.world.rank_threads` chooses them."""
        return plan.threads_per_rank or max(1, cores // self._ranks_here(plan))

    def _share(self, plan: RunPlan) -> float:
        """Return the share of a device, or of a machine with CPU ranks, that a rank has while it computes."""
        cores = self._cluster.cores_per_node
        if cores is None:
            return 1.0
        alone = min(1.0, self._threads(plan, cores) / cores)
        # Ranks that all compute at the same time; those of a pipeline wait in turns (`_crowded`).
        return alone if plan.pipeline_parallel_size > 1 else min(alone, 1.0 / self._ranks_here(plan))

    def _wires(self, plan: RunPlan) -> Wires:
        cores = self._cluster.cores_per_node
        crowding = 1.0 if cores is None else max(1.0, self._ranks_here(plan) / cores)
        return Wires(self._cluster, self._profile, crowding)

    def _crowded(self, plan: RunPlan, costs: tuple[Costs, ...], total: float) -> float:
        """Return the factor by which a pipeline takes longer where a machine's ranks have more threads than cores.

        Cores do not idle while any rank has work: together the ranks need at least their work over the cores.
        """
        cores, ranks = self._cluster.cores_per_node, self._ranks_here(plan)
        if cores is None or plan.pipeline_parallel_size == 1:
            return 1.0
        a_rank = sum(one.forward + one.backward for one in costs) / len(costs) * plan.num_micro_batches
        return max(1.0, ranks * a_rank * min(self._threads(plan, cores), cores) / cores / total)

    # The schedule.

    def _message(self, plan: RunPlan, wires: Wires, where: Places) -> float:
        """Return the seconds of one message between stages.

        Megatron cuts it over the tensor-parallel ranks (arXiv 2104.04473, section 4.1) and gathers it on the other
        side; DeepSpeed's engine sends it whole, or as it is with sequence parallelism.
        """
        if plan.pipeline_parallel_size == 1:
            return 0.0
        whole = float(tokens(plan) * plan.model.hidden_size * element_bytes(plan))
        if plan.sequence_parallel:
            return wires.seconds(Collective.send, whole / plan.tensor_parallel_size, where.pipe)
        if self._cluster.software is not Software.megatron:
            return wires.seconds(Collective.send, whole, where.pipe)
        cut = wires.seconds(Collective.send, whole / plan.tensor_parallel_size, where.pipe)
        return cut + wires.seconds(Collective.all_gather, whole, where.tensor)

    def _pipeline(self, plan: RunPlan, costs: tuple[Costs, ...], message: float) -> _Pipeline:
        """Return the closed form of the schedule."""
        pp, count, chunks = plan.pipeline_parallel_size, plan.num_micro_batches, self._cluster.virtual_stages
        folded = plan.schedule.kind is PipelineSchedule.dualpipev and pp > 1
        if pp == 1:
            chunks = 1
        waits = 2.0 * message * (2 if folded else chunks)
        times = [one.forward + one.backward + self._profile.micro_batch_s.value + waits for one in costs]
        critical = max(range(pp), key=times.__getitem__)
        longest = times[critical]
        if folded:
            total = count * longest / (1.0 - plan.bubble_in_theory)
        else:
            total = count * longest + (sum(times) - longest) / chunks
        return _Pipeline(total, count * waits, critical)

    # Gradients and weights over the data axis.

    def _data_parallel(
        self, plan: RunPlan, costs: tuple[Costs, ...], wires: Wires, where: Places
    ) -> tuple[float, float]:
        """Return the seconds of collectives of gradients and weights that nothing hides, and those beside backward."""
        group = where.data
        rank = max(costs, key=lambda one: one.trained)
        tied = self._tied(plan, wires, where)
        if group.ranks == 1:
            return tied, 0.0
        stage, profile, count = plan.zero_stage, self._profile, plan.num_micro_batches
        width = element_bytes(plan)
        gradients = rank.trained * self._gradient_bytes(plan) * profile.gradient_traffic.value
        kind = Collective.reduce_scatter if self._scatters(plan) else Collective.all_reduce
        reducing = self._in_buckets(plan, wires, kind, gradients, rank, where)
        times = count if stage >= 2 else 1
        overlapped = profile.overlap.value if self._overlaps(plan) else 0.0
        hidden = min(reducing, overlapped * rank.backward) * times
        exposed = reducing * times - hidden
        if stage == 3:
            # Weights are gathered block by block, for forward and again for backward.
            blocks = max(1, rank.blocks)
            gathering = blocks * wires.seconds(Collective.all_gather, rank.parameters * width / blocks, group)
            for beside in (rank.forward, rank.backward):
                covered = min(gathering, overlapped * beside)
                hidden += covered * count
                exposed += (gathering - covered) * count
        elif stage in (1, 2):
            # DeepSpeed gathers the stepped weights at once; Megatron while the next step's forward begins.
            gathering = wires.seconds(Collective.all_gather, rank.trained * width, group)
            beside = rank.forward if self._cluster.software is Software.megatron else 0.0
            covered = min(gathering, overlapped * beside)
            hidden += covered
            exposed += gathering - covered
        return exposed + tied, hidden

    def _in_buckets(
        self, plan: RunPlan, wires: Wires, kind: Collective, size: float, rank: Costs, where: Places
    ) -> float:
        """Return the seconds of gradients that are reduced bucket by bucket."""
        buckets = max(1, -(-rank.trained // self._bucket(plan)))
        return buckets * wires.seconds(kind, size / buckets, where.data)

    def _bucket(self, plan: RunPlan) -> int:
        if self._cluster.software is Software.deepspeed:
            return DEEPSPEED_BUCKET
        if self._cluster.software is Software.megatron:
            # All gradients lie in one tensor.
            return 1 << 62
        key = (id(plan.model), plan.execution, plan.tensor_parallel_size, plan.zero.reduce_bucket_size)
        if key not in self._buckets:
            self._buckets[key] = reduce_bucket_size(plan)
        return self._buckets[key]

    def _gradient_bytes(self, plan: RunPlan) -> int:
        """Return the bytes of an element of gradients as it travels.

        Trident accumulates and reduces in fp32, and so do Megatron and DeepSpeed's BF16_Optimizer in bf16; with fp16
        both reduce fp16.
        """
        ours = self._cluster.software is Software.trident
        return FP32_BYTES if ours or plan.dtype is not Dtype.fp16 else 2

    def _scatters(self, plan: RunPlan) -> bool:
        """Return whether each rank receives only the sums that it steps.

        DeepSpeed's stages 1 and 2 sum whole buckets on every rank; between CPU ranks Trident does not
        (`trainer.engine.zero12_gradients`). Megatron's distributed optimizer scatters.
        """
        if plan.zero_stage == 0:
            return False
        is_megatron = self._cluster.software is Software.megatron
        ours_on_cpu = self._cluster.is_cpu and self._cluster.software is Software.trident
        return plan.zero_stage == 3 or is_megatron or ours_on_cpu

    def _overlaps(self, plan: RunPlan) -> bool:
        """Return whether collectives of gradients run beside backward."""
        if self._cluster.software is Software.megatron:
            return True
        return plan.zero.overlap_comm and not plan.uses_pipeline_engine and plan.zero_stage > 0

    def _tied(self, plan: RunPlan, wires: Wires, where: Places) -> float:
        """Return the seconds in which the first and the last stage add their gradients of a tied embedding."""
        if plan.pipeline_parallel_size == 1 or not plan.model.head.tied:
            return 0.0
        rows = plan.execution.padded(plan.model.vocab_size) / plan.tensor_parallel_size
        size = rows * plan.model.hidden_size * self._gradient_bytes(plan)
        return wires.seconds(Collective.all_reduce, size, where.ends)

    # The update.

    def _optimizer(self, plan: RunPlan, costs: tuple[Costs, ...], wires: Wires) -> tuple[float, float]:
        """Return the seconds of the optimizer, and of offload.

        Raises:
            ConfigError: the profile does not know how fast the machine's memory is.
        """
        rank = max(costs, key=lambda one: one.trained)
        own = rank.trained / (plan.data_parallel_size if plan.zero_stage else 1)
        rate = self._profile.optimizer_efficiency.value * self._kernels.bandwidth * self._step_share(plan)
        passes = GRADIENT_PASSES * FP32_BYTES * rank.trained
        master = element_bytes(plan) if plan.dtype is not Dtype.fp32 else 0
        if plan.offload is OffloadKind.none or plan.zero_stage == 0:
            return (own * (ADAM_BYTES + master) + passes) / rate, 0.0
        host = self._profile.host_bandwidth
        if host is None:
            raise ConfigError(
                f"zero.offload must be none under the profile {self._profile.name}, which does not know the host's "
                f"memory, but is {plan.offload.value}: run `trident plan --calibrate`"
            )
        stepping = own * (ADAM_BYTES + master) * self._ranks_here(plan) / host.value
        down = wires.host_seconds(own * FP32_BYTES)
        up = wires.host_seconds(own * element_bytes(plan))
        if plan.zero_stage == 3 and plan.zero.offload_parameters:
            up *= 2 * plan.num_micro_batches
        return passes / rate, stepping + down + up

    def _step_share(self, plan: RunPlan) -> float:
        """Return the share of a device or of a CPU machine that a rank has in the update, when all ranks work."""
        return self._share(plan) if self._cluster.cores_per_node is None else 1.0 / self._ranks_here(plan)
