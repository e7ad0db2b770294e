"""The layouts in which a model can be trained on a number of devices. No torch.

A layout here is everything that changes how a run is computed and not what it computes: the mesh, the schedule, ZeRO
with offload, the micro-batch and recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from trainer.config.keys import shown_value
from trainer.config.layout_words import spelled
from trainer.config.models import make_execution
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.plan import RunPlan
from trainer.config.rules_cluster import deals_out
from trainer.config.rules_common import Case, divisors, legal_tensor_parallel_sizes
from trainer.config.schema import (
    Dtype,
    LayoutConfig,
    ModelConfig,
    OffloadKind,
    PipelineSchedule,
    RecomputeKind,
    Software,
    TridentConfig,
    ZeroConfig,
)
from trainer.mesh import Mesh
from trainer.spec.execution import Execution

MESH = (
    "layout.pipeline_parallel_size",
    "layout.tensor_parallel_size",
    "layout.data_parallel_size",
    "layout.sequence_parallel",
    "layout.pipeline_schedule",
)
FREE = (
    *MESH,
    "zero.stage",
    "zero.offload",
    "zero.offload_parameters",
    "batch.micro_batch_size",
    "model.recompute",
)
"""Keys that a search may choose: none of them changes what is learned."""
_OFFLOAD_COST = 2.0


def variants(base: RunPlan, world: int, held: Collection[str] = ()) -> Iterator[RunPlan]:
    """Yield the plan of every way to train the same model and batch on `world` devices.

    Args:
        base: plan of a run; its model is shared by all that are yielded.
        world: devices, all of which are used.
        held: keys of `FREE` that stay as they are in `base`.
    """
    space = _Space(base, world, frozenset(held))
    for mesh in space.meshes():
        yield from space.on(mesh)


@dataclass(frozen=True)
class _Space:
    base: RunPlan
    world: int
    held: frozenset[str]

    @property
    def config(self) -> TridentConfig:
        return self.base.config

    @property
    def _replicas(self) -> int:
        chosen = self.config.layout.data_parallel_size
        return chosen if isinstance(chosen, int) else self.base.data_parallel_size

    def _choose(self, key: str, current: int, found: list[int]) -> list[int]:
        return [value for value in found if value == current] if key in self.held else found

    def meshes(self) -> Iterator[Mesh]:
        """Yield the sizes of the axes that divide the world, the model and the batch."""
        config, model = self.config, self.config.model
        whole = replace(config, layout=replace(config.layout, sequence_parallel=False))
        sizes = legal_tensor_parallel_sizes(Case(whole, None, None))
        for tp in self._choose(MESH[1], config.layout.tensor_parallel_size, sizes):
            if self.world % tp:
                continue
            stages = [pp for pp in divisors(self.world // tp) if pp <= model.num_layers]
            for pp in self._choose(MESH[0], config.layout.pipeline_parallel_size, stages):
                dp = self.world // (tp * pp)
                if config.batch.global_batch_size % dp or (MESH[2] in self.held and dp != self._replicas):
                    continue
                yield Mesh(pp, dp, tp)

    def on(self, mesh: Mesh) -> Iterator[RunPlan]:
        """Yield everything that can be done on a mesh."""
        config = self.config
        # What layouts of a mesh have in common is made once: a search makes thousands of them.
        models = [replace(config.model, recompute=recompute) for recompute in self._recomputations()]
        ways = [(model, self._execution(model, mesh)) for model in models]
        for micro_batch in self._micro_batches(mesh):
            rounds = config.batch.global_batch_size // (mesh.data_parallel_size * micro_batch)
            batch = replace(config.batch, micro_batch_size=micro_batch)
            for zero in self._zeros(mesh):
                for layout in self._layouts(mesh, zero, rounds):
                    for model, execution in ways:
                        changed = replace(config, model=model, layout=layout, zero=zero, batch=batch)
                        yield replace(
                            self.base, config=changed, execution=execution, mesh=mesh, num_micro_batches=rounds
                        )

    def _execution(self, model: ModelConfig, mesh: Mesh) -> Execution:
        made = make_execution(model, mesh.tensor_parallel_size)
        return replace(self.base.execution, vocab_unit=made.vocab_unit, recompute=made.recompute)

    def _micro_batches(self, mesh: Mesh) -> list[int]:
        batch = self.config.batch
        share = batch.global_batch_size // mesh.data_parallel_size
        found = [size for size in divisors(share) if size & (size - 1) == 0 or size == batch.micro_batch_size]
        return self._choose("batch.micro_batch_size", batch.micro_batch_size, found)

    def _layouts(self, mesh: Mesh, zero: ZeroConfig, rounds: int) -> Iterator[LayoutConfig]:
        config = self.config
        layout, length = config.layout, config.model.seq_length
        pp, tp = mesh.pipeline_parallel_size, mesh.tensor_parallel_size
        same = pp == layout.pipeline_parallel_size
        sharded = [False] + [True] * (tp > 1 and length % tp == 0)
        if MESH[3] in self.held:
            sharded = [one for one in sharded if one is layout.sequence_parallel]
        kinds = [kind for kind in SCHEDULES if self._runs(kind, pp, rounds, zero)]
        if MESH[4] in self.held:
            kinds = [kind for kind in kinds if kind is layout.pipeline_schedule]
        for kind in kinds:
            bounds = layout.stage_boundaries if same and SCHEDULES[kind].takes_boundaries else ()
            for sequence_parallel in sharded:
                yield LayoutConfig(pp, tp, mesh.data_parallel_size, sequence_parallel, kind, bounds)

    def _runs(self, kind: PipelineSchedule, pp: int, rounds: int, zero: ZeroConfig) -> bool:
        schedule = SCHEDULES[kind]
        chunks = self.config.cluster.virtual_stages
        if chunks > 1 and (pp == 1 or rounds % pp or not deals_out(self.config.model.num_layers, pp, chunks)):
            return False
        if pp == 1:
            return schedule.has_effect_alone
        fills = rounds >= schedule.fewest_micro_batches(pp)
        has_blocks = self.config.model.num_layers >= schedule.stages(pp)
        return fills and has_blocks and (schedule.takes_offload or zero.offload is OffloadKind.none)

    def _zeros(self, mesh: Mesh) -> list[ZeroConfig]:
        config = self.config
        # Other software adds up half-precision gradients without ZeRO as well.
        is_peer = config.cluster.engine is not Software.trident
        least = 0 if is_peer or config.precision.dtype is Dtype.fp32 else 1
        # Megatron has stage 1 alone, as its distributed optimizer.
        has_all = config.cluster.engine is not Software.megatron
        most = 3 if has_all and mesh.pipeline_parallel_size == 1 and mesh.data_parallel_size > 1 else 1
        found = []
        for stage in range(least, most + 1):
            kinds = [OffloadKind.none] + [OffloadKind.cpu] * (stage > 0)
            if config.zero.offload is OffloadKind.nvme and stage == 3:
                kinds.append(OffloadKind.nvme)
            for kind in kinds:
                moves = [False] + [True] * (stage == 3 and kind is not OffloadKind.none)
                path = config.zero.nvme_path if kind is OffloadKind.nvme else None
                found += [
                    replace(config.zero, stage=stage, offload=kind, offload_parameters=move, nvme_path=path)
                    for move in moves
                ]
        if mesh.data_parallel_size == 1 and least == 0:
            # One replica has nothing to shard: on the device stages 0 and 1 are one run, of which one is looked at.
            other = 1 if config.zero.stage == 0 else 0
            found = [one for one in found if one.stage != other or one.offload is not OffloadKind.none]
        for name in ("stage", "offload", "offload_parameters"):
            if f"zero.{name}" in self.held:
                found = [one for one in found if getattr(one, name) == getattr(config.zero, name)]
        return found

    def _recomputations(self) -> list[RecomputeKind]:
        current = self.config.model.recompute
        return [current] if "model.recompute" in self.held else list(RecomputeKind)


def config_of(plan: RunPlan) -> TridentConfig:
    """Return the config of a plan: a search is the one place below the entry point that makes other ones of it."""
    return plan.config


def layout_words(config: TridentConfig, base: TridentConfig | None = None) -> tuple[str, ...]:
    """Return the overrides that give a layout, as they are pasted behind `trident train`.

    Args:
        config: has the layout.
        base: the config that they are pasted behind; keys that it has already are left out. None: all of them.
    """
    words = [f"layout={spelled(config.layout)}"]
    for key in FREE[len(MESH) :]:
        group, name = key.split(".")
        value = getattr(getattr(config, group), name)
        if base is None or value != getattr(getattr(base, group), name):
            words.append(f"{key}={shown_value(value)}")
    if base is not None and base.layout.stage_boundaries and not config.layout.stage_boundaries:
        words.append("layout.stage_boundaries=[]")
    return tuple(words)


def distance(config: TridentConfig, base: TridentConfig) -> float:
    """Return how much is changed from one config to another: doublings of sizes, and one for every other key."""
    total = 0.0
    for key in FREE:
        group, name = key.split(".")
        new, old = getattr(getattr(config, group), name), getattr(getattr(base, group), name)
        if new == old:
            continue
        is_size = key == "batch.micro_batch_size" or key in MESH[:3]
        if is_size and isinstance(new, int) and isinstance(old, int):
            total += abs(math.log2(new / old)) if old > 0 else 1.0
        elif is_size:
            # Replicas that fill what is left are no choice of the user's.
            total += 0.0
        else:
            total += _OFFLOAD_COST if isinstance(new, OffloadKind) else 1.0
    return total
