"""The seconds of a step, part by part: `TimeModel`. No torch.

Compute is `kernels`, links are `links`, the schedule is `schedule_time`; here they are put together as the software
does: layers of a stage, micro-batches, gradients and weights over the data axis, the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.ds_json import reduce_bucket_size
from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.kernels import Costs, Kernels, all_costs
from trainer.planner.links import Places, Wires, places
from trainer.planner.prediction import StepTime
from trainer.planner.profile import Collective, Profile
from trainer.planner.schedule_time import Passes, pipeline_seconds
from trainer.planner.shares import Shares, chunks_of, shares
from trainer.planner.update_time import Update, ranks_here
from trainer.planner.work import element_bytes, reduced_bytes, tokens
from trainer.spec.model import Layer

DEEPSPEED_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once by default."""


@dataclass(frozen=True)
class TimedStep:
    """A predicted step."""

    time: StepTime
    bubble_fraction: float
    """Share of the pipeline's time in which its busiest rank waits for other ranks: 0 to 1."""
    passes: Passes
    """Seconds of one micro-batch in each stage."""
    message_s: float
    """Seconds of a message between neighbouring stages."""


@dataclass(frozen=True)
class _Share:
    """Costs of a pipeline for one micro-batch."""

    passes: Passes
    ranks: tuple[Costs, ...]
    """Costs of all stages of each pipeline rank."""
    busiest: int
    """Rank that computes longest."""


_Kinds = dict[object, tuple[Layer, int]]


def _kinds(layers: Sequence[Layer], by_name: bool) -> _Kinds:
    """Return one layer of each kind, and how many there are like it."""
    found: dict[object, tuple[Layer, int]] = {}
    for layer in layers:
        key = layer.name if by_name else (layer.kind, id(layer.spec))
        found[key] = (layer, found[key][1] + 1 if key in found else 1)
    return found


class TimeModel:
    """Predicts the time of a step. An instance keeps what candidates of a search have in common."""

    def __init__(self, cluster: Cluster, profile: Profile) -> None:
        """Keep machines and profile."""
        self._cluster = cluster
        self._profile = profile
        self._kernels = Kernels(cluster, profile)
        # Models are compared by identity, which is quick; they are kept so that no other one gets the same identity.
        self._models: dict[int, object] = {}
        self._shares: dict[tuple[object, ...], tuple[Shares, list[_Kinds]]] = {}
        self._layers: dict[tuple[object, ...], Costs] = {}
        self._costs: dict[tuple[object, ...], _Share] = {}
        self._buckets: dict[tuple[object, ...], int] = {}
        self._places: dict[tuple[int, int, int], Places] = {}

    @property
    def kept(self) -> int:
        """Number of distinct results that it keeps: candidates that share them cost little."""
        caches = (self._shares, self._layers, self._costs, self._buckets, self._places)
        return sum(len(cache) for cache in caches)

    def step(self, plan: RunPlan, exact: bool = True) -> TimedStep:
        """Return the time of one optimizer step.

        Args:
            plan: numbers of the run.
            exact: simulate the schedule's events; otherwise the closed form, which is quick.
        """
        self._models[id(plan.model)] = plan.model
        share, where, wires = self._share_of(plan), self._where(plan), self._wires(plan)
        rank, count = share.ranks[share.busiest], plan.num_micro_batches
        message = self._message(plan, wires, where)
        without = pipeline_seconds(plan, self._cluster, share.passes, 0.0, exact)
        waits = 0.0
        if message:
            waits = pipeline_seconds(plan, self._cluster, share.passes, message, exact) - without
        extra = self._profile.micro_batch_s.value
        busy = count * (rank.forward + rank.backward + extra)
        parts = {
            "gemm": count * rank.gemm,
            "attention": count * rank.attention,
            "elementwise": count * rank.elementwise,
            "recompute": count * rank.recompute,
            "launch": count * (rank.launch + extra),
            "tensor_parallel": count * rank.tensor_parallel,
            "pipeline": waits,
        }
        crowded = self._crowded(plan, share.ranks, without + waits)
        bubble = max(0.0, without - busy)
        if crowded > 1.0:
            parts = {name: crowded * value for name, value in parts.items()}
            bubble = max(0.0, without - crowded * busy)
        parts["launch"] += self._profile.step_s.value
        exposed, hidden = self._data_parallel(plan, share.ranks, wires, where)
        hiding = self._profile.overlap.value if self._overlaps(plan) else 0.0
        update = Update(plan, self._cluster, self._profile, self._kernels.bandwidth)
        fullest = max(share.ranks, key=lambda one: one.trained)
        optimizer, offload = update.seconds(fullest, wires, hiding)
        time = StepTime(
            **parts,
            data_parallel=exposed,
            bubble=bubble,
            optimizer=optimizer,
            offload=offload,
            data_parallel_hidden=hidden,
        )
        return TimedStep(time, bubble / max(without + waits, crowded * busy), share.passes, message)

    # What candidates share.

    def _share_of(self, plan: RunPlan) -> _Share:
        """Return the costs of each stage and rank for one micro-batch."""
        execution, pp = plan.execution, plan.pipeline_parallel_size
        # The partition follows from the work of the layers, whatever their sharding.
        cut = (id(plan.model), execution.seq_length, execution.recompute, pp, plan.schedule.kind, plan.stage_boundaries)
        part = self._part(plan)
        # A tied head has a copy of the embedding's weight where a pipeline separates them.
        kind = (plan.dtype, plan.micro_batch_size, plan.sequence_parallel, plan.zero_stage == 3, pp > 1, part)
        layer_key = (id(plan.model), execution, self._where(plan).tensor, kind)
        key = (cut, layer_key)
        if key not in self._costs:
            owned, kinds = self._owned(plan, cut)
            self._costs[key] = self._sums(plan, owned, self._stages(plan, kinds, part, layer_key))
        return self._costs[key]

    def _owned(self, plan: RunPlan, cut: tuple[object, ...]) -> tuple[Shares, list[_Kinds]]:
        """Return the layers of each stage, and the kinds among them."""
        by_name = bool(plan.execution.frozen)
        key = (*cut, by_name)
        if key not in self._shares:
            owned = shares(plan, self._cluster)
            self._shares[key] = (owned, [_kinds(layers, by_name) for layers in owned.stages])
        return self._shares[key]

    def _stages(self, plan: RunPlan, stages: list[_Kinds], part: float, key: tuple[object, ...]) -> list[Costs]:
        """Return the costs of each stage. Most stages of a deep pipeline hold the same: these are added up once."""
        found: dict[tuple[object, ...], Costs] = {}
        costs = []
        for kinds in stages:
            name = tuple((kind, count) for kind, (_, count) in kinds.items())
            if name not in found:
                found[name] = all_costs((self._layer(plan, one, part, key), count) for one, count in kinds.values())
            costs.append(found[name])
        return costs

    def _sums(self, plan: RunPlan, owned: Shares, stages: list[Costs]) -> _Share:
        pp = plan.pipeline_parallel_size
        ranks = tuple(stages)
        if len(stages) > pp:
            ranks = tuple(
                all_costs((stage, 1) for stage, owner in zip(stages, owned.owners, strict=True) if owner == rank)
                for rank in range(pp)
            )
        # Backward takes about twice the time of forward in the engine as well.
        extra = self._profile.micro_batch_s.value / 3 * pp / len(stages)
        passes = Passes(
            tuple(stage.forward + extra for stage in stages),
            tuple(stage.backward + 2 * extra for stage in stages),
            owned.owners,
        )
        return _Share(passes, ranks, max(range(pp), key=lambda rank: ranks[rank].forward + ranks[rank].backward))

    def _layer(self, plan: RunPlan, layer: Layer, part: float, key: tuple[object, ...]) -> Costs:
        """Return the costs of a layer; those that are alike cost the same."""
        own = (key, layer.name) if plan.execution.frozen else (key, layer.kind, id(layer.spec))
        if own not in self._layers:
            wires, group = self._wires(plan), self._where(plan).tensor
            self._layers[own] = self._kernels.layer(plan, layer, part, wires, group)
        return self._layers[own]

    def _where(self, plan: RunPlan) -> Places:
        key = (plan.pipeline_parallel_size, plan.data_parallel_size, plan.tensor_parallel_size)
        if key not in self._places:
            self._places[key] = places(*key, self._cluster)
        return self._places[key]

    # CPU ranks share the cores of their machine.

    def _threads(self, plan: RunPlan, cores: int) -> int:
        """Return the threads of a rank, as `trainer.engine.world.rank_threads` chooses them."""
        return plan.threads_per_rank or max(1, cores // ranks_here(plan, self._cluster))

    def _part(self, plan: RunPlan) -> float:
        """Return the share of a device, or of a machine with CPU ranks, that a rank has while it computes."""
        cores = self._cluster.cores_per_node
        if cores is None:
            return 1.0
        alone = min(1.0, self._threads(plan, cores) / cores)
        # Ranks that all compute at the same time; those of a pipeline wait in turns (`_crowded`).
        return alone if plan.pipeline_parallel_size > 1 else min(alone, 1.0 / ranks_here(plan, self._cluster))

    def _wires(self, plan: RunPlan) -> Wires:
        cores = self._cluster.cores_per_node
        crowding = 1.0 if cores is None else max(1.0, ranks_here(plan, self._cluster) / cores)
        return Wires(self._cluster, self._profile, crowding)

    def _crowded(self, plan: RunPlan, costs: tuple[Costs, ...], total: float) -> float:
        """Return the factor by which a pipeline takes longer where a machine's ranks have more threads than cores.

        Cores do not idle while any rank has work: together the ranks need at least their work over the cores.
        """
        cores, ranks = self._cluster.cores_per_node, ranks_here(plan, self._cluster)
        if cores is None or plan.pipeline_parallel_size == 1:
            return 1.0
        a_rank = sum(one.forward + one.backward for one in costs) / len(costs) * plan.num_micro_batches
        return max(1.0, ranks * a_rank * min(self._threads(plan, cores), cores) / cores / total)

    # Messages between stages.

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
        gradients = rank.trained * reduced_bytes(plan, self._cluster.software) * profile.gradient_traffic.value
        kind = Collective.reduce_scatter if self._scatters(plan) else Collective.all_reduce
        reducing = self._in_buckets(plan, wires, kind, gradients, rank, where)
        times = count if stage >= 2 else 1
        overlapped = profile.overlap.value if self._overlaps(plan) else 0.0
        # Interleaved chunks are through one after the other, while backward of the next ones goes on.
        chunks = chunks_of(plan, self._cluster)
        overlapped *= 1.0 + (plan.pipeline_parallel_size - 1) * (1.0 - 1.0 / chunks)
        hidden = min(reducing, overlapped * rank.backward) * times
        exposed = reducing * times - hidden
        if stage == 3:
            # Weights are gathered block by block, for forward and again for backward.
            blocks = max(1, rank.blocks)
            size = rank.parameters * width * profile.weight_traffic.value
            gathering = blocks * wires.seconds(Collective.all_gather, size / blocks, group)
            # Gradients leave beside the same backward: what hides them hides no weights.
            left = overlapped * rank.backward - hidden / times
            for beside in (overlapped * rank.forward, left):
                covered = min(gathering, beside)
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
        size = rows * plan.model.hidden_size * reduced_bytes(plan, self._cluster.software)
        return wires.seconds(Collective.all_reduce, size, where.ends)
