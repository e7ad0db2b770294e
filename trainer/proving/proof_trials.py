"""The trials of a proof: the layout of a run, scaled down, and neighbours in which fewer things differ. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from trainer.config.layout_words import spelled, spelled_layout
from trainer.config.models import sizes
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.rules_common import Case, legal_tensor_parallel_sizes
from trainer.config.rules_layout import blocks_for_stages
from trainer.config.rules_model import cut_over_tensor_ranks
from trainer.config.schema import (
    Dtype,
    LayoutConfig,
    OffloadKind,
    PipelineSchedule,
    RecomputeKind,
    TridentConfig,
    ZeroConfig,
)
from trainer.config.validate import ARITHMETIC, broken_rules
from trainer.errors import ConfigError
from trainer.proving.scaled_model import Extent
from trainer.proving.scaled_run import ScaledRun, scaled_run

MOST_RANKS = 8
_STAGES_ALONE = 4
"""Number of stages of which some are neither first nor last."""
_LARGEST_TENSOR = 5
SEQUENCES = 4
"""Global batch: as many micro-batches of one sequence as any schedule of two stages needs."""


class Axis(Enum):
    """One way in which a trial differs from one process that trains one micro-batch in fp32."""

    pipeline = "pipeline"
    tensor = "tensor"
    sequence = "sequence"
    data = "data"
    accumulation = "accumulation"
    zero = "ZeRO"
    offload = "offload"
    schedule = "schedule"
    recompute = "recompute"
    compile = "compile"
    precision = "precision"
    tie = "tied embeddings"


@dataclass(frozen=True)
class Setting:
    """A layout, and what else is chosen for a trial."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    micro_batches: int = 1
    sequence_parallel: bool = False
    schedule: PipelineSchedule = PipelineSchedule.f1b1
    zero_stage: int = 0
    offload: OffloadKind = OffloadKind.none
    offload_parameters: bool = False
    dtype: Dtype = Dtype.fp32
    recompute: RecomputeKind = RecomputeKind.none
    compiled: bool = False
    untied: bool = False
    """True if the model's tie is undone."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.tp * self.dp


@dataclass(frozen=True)
class Trial:
    """A setting with its config."""

    setting: Setting
    config: TridentConfig
    is_chosen: bool = False
    """True if it is the layout of the run."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.setting.world_size

    @property
    def axes(self) -> frozenset[Axis]:
        """Ways in which it differs from a plain process."""
        one = self.setting
        shards = one.zero_stage > 0 and (
            one.dp > 1 or one.dtype is not Dtype.fp32 or one.offload is not OffloadKind.none
        )
        found = {
            Axis.pipeline: one.pp > 1,
            Axis.tensor: one.tp > 1,
            Axis.sequence: one.sequence_parallel,
            Axis.data: one.dp > 1,
            Axis.accumulation: one.micro_batches > 1,
            Axis.zero: shards,
            Axis.offload: one.offload is not OffloadKind.none,
            Axis.schedule: one.schedule is not PipelineSchedule.f1b1,
            Axis.recompute: one.recompute is not RecomputeKind.none,
            Axis.compile: one.compiled,
            Axis.precision: one.dtype is not Dtype.fp32,
            Axis.tie: one.pp > 1 and self.config.model.tied_embeddings,
        }
        return frozenset(axis for axis, is_on in found.items() if is_on)

    @property
    def name(self) -> str:
        """Its layout, and what else decides its numbers."""
        one = self.setting
        parts = [spelled(self.config.layout), f"{one.micro_batches} micro-batch{'es' * (one.micro_batches > 1)}"]
        parts += [f"ZeRO-{one.zero_stage}"] * (Axis.zero in self.axes)
        parts += [f"offload={one.offload.value}"] * (one.offload is not OffloadKind.none)
        parts += ["offloaded parameters"] * one.offload_parameters
        parts += [f"recompute={one.recompute.value}"] * (one.recompute is not RecomputeKind.none)
        parts += ["compiled"] * one.compiled + ["untied"] * one.untied + [one.dtype.value]
        return ", ".join(parts)

    def problems(self) -> list[str]:
        """Return a line for each rule of sizes and layouts that it breaks."""
        return [line for rule, line in broken_rules(self.config) if rule in ARITHMETIC]


def trial_of(base: TridentConfig, one: Setting, is_chosen: bool = False) -> Trial:
    """Return the trial of a scaled run in a setting; its global batch stays.

    Args:
        base: see `ScaledRun.config`.
        one: the setting.
        is_chosen: true if it is the layout of the run.
    """
    sequences = base.batch.global_batch_size
    zero = replace(base.zero, stage=one.zero_stage, offload=one.offload, offload_parameters=one.offload_parameters)
    config = replace(
        base,
        model=replace(
            base.model, recompute=one.recompute, tied_embeddings=base.model.tied_embeddings and not one.untied
        ),
        layout=LayoutConfig(one.pp, one.tp, one.dp, one.sequence_parallel, one.schedule),
        zero=zero,
        precision=replace(base.precision, dtype=one.dtype),
        batch=replace(base.batch, micro_batch_size=max(1, sequences // (one.micro_batches * one.dp))),
        runtime=replace(base.runtime, compile=one.compiled),
    )
    return Trial(one, config, is_chosen)


@dataclass(frozen=True)
class Proof:
    """Everything that is tried of a run."""

    run: ScaledRun
    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]
    """Lines about what is not proved."""


def proof_of(config: TridentConfig, vocab_size: int | None, layouts: Sequence[str] = ()) -> Proof:
    """Return the trials of a run.

    Args:
        config: accepted by `validate`, with a layout.
        vocab_size: number of token ids; None if it is not known yet.
        layouts: spellings of layouts that are tried instead of the run's own and its neighbours.

    Raises:
        ConfigError: the run cannot be scaled down, or a layout cannot be tried; says why.
    """
    plan = _Neighbourhood(config)
    if layouts:
        around: tuple[Setting, ...] = (Setting(),)
        named = [plan.spelled_as(name) for name in layouts]
        sequences = math.lcm(*(one.dp * one.micro_batches for one in named))
        chosen = tuple(replace(one, micro_batches=sequences // one.dp) for one in named)
    else:
        chosen, around, sequences = plan.chosen(), tuple(plan.around()), plan.sequences
    every = (*chosen, *around)
    tensor = math.lcm(*(one.tp for one in every))
    stages = max(SCHEDULES[one.schedule].stages(one.pp) if one.pp > 1 else 1 for one in every)
    extent = Extent(tensor, stages, shares_heads=plan.shares_heads)
    run = scaled_run(config, vocab_size, extent, sequences)
    found: dict[Setting, Trial] = {}
    left_out = [*plan.left_out, *run.left_out]
    for one in every:
        trial = trial_of(run.config, one, one in chosen)
        problems = trial.problems()
        if problems and one in chosen:
            raise ConfigError([f"{trial.name} cannot be proved: {problem}" for problem in problems])
        if problems:
            left_out.append(f"{trial.name}: {problems[0]}")
        else:
            found.setdefault(one, trial)
    return Proof(run, tuple(found.values()), tuple(left_out))


def sharded(one: Setting, zero: ZeroConfig, stage: int | None = None) -> Setting:
    """Return a setting with a run's choice of ZeRO, as far as it is legal there. NVMe becomes host memory.

    Args:
        one: the setting, without ZeRO.
        zero: the run's choice.
        stage: another stage than the run's.
    """
    stage = zero.stage if stage is None else stage
    stage = max(min(stage, 1 if one.pp > 1 else 3), 0 if one.dtype is Dtype.fp32 else 1)
    offloads = stage > 0 and zero.offload is not OffloadKind.none and SCHEDULES[one.schedule].takes_offload
    if one.dp == 1 and one.dtype is Dtype.fp32 and not offloads and stage < 3:
        # There is nothing to shard: both stages are computed as this one.
        stage = 0
    offload = OffloadKind.cpu if offloads else OffloadKind.none
    return replace(
        one, zero_stage=stage, offload=offload, offload_parameters=offloads and zero.offload_parameters and stage == 3
    )


class _Neighbourhood:
    """The settings that a run's config leads to."""

    def __init__(self, config: TridentConfig) -> None:
        layout, self._config = config.layout, config
        self.left_out: list[str] = []
        self._pp, self._tp = layout.pipeline_parallel_size, layout.tensor_parallel_size
        replicas = layout.data_parallel_size
        self._dp = replicas if isinstance(replicas, int) else None
        """None: as many as a launcher starts."""
        self._is_folded = layout.pipeline_schedule is PipelineSchedule.dualpipev
        groups = sizes(config.model).num_key_value_heads
        self.shares_heads = 1 < groups < self._tp
        self._small_tp = self._tensor_size(groups)
        self.sequences = SEQUENCES * (2 if self._is_folded and self._dp != 1 else 1)

    def _tensor_size(self, groups: int) -> int:
        """Return the tensor-parallel size of the trials: the least that shards as the run's does, or could; else 1."""
        if self.shares_heads:
            return 4
        legal = legal_tensor_parallel_sizes(Case(self._config, None, None)) if self._tp == 1 else [self._tp]
        factors = [p for p in range(2, _LARGEST_TENSOR + 1) if any(size % p == 0 for size in legal)]
        if factors:
            return factors[0]
        if self._tp > 1:
            raise ConfigError(
                f"layout.tensor_parallel_size ({self._tp}) must have a factor of at most {_LARGEST_TENSOR} to be "
                f"scaled down to {MOST_RANKS} ranks, but has none; prove another layout with --layouts"
            )
        heads = self._config.model.num_attention_heads
        self.left_out.append(f"tensor parallelism: no size up to {_LARGEST_TENSOR} shards {heads} heads of {groups}")
        return 1

    def _sharded(self, one: Setting, stage: int | None = None) -> Setting:
        return sharded(one, self._config.zero, stage)

    def _micro_batches(self, dp: int, folded_stages: int) -> int:
        """Return how many micro-batches the run's layout has here: several if the run's has."""
        batch, most = self._config.batch, self.sequences // dp
        if batch.global_batch_size == batch.micro_batch_size * (self._dp or 1):
            return 1
        few = max(2, folded_stages)
        return most // 2 if batch.micro_batch_size > 1 and most // 2 >= few else most

    def chosen(self) -> tuple[Setting, ...]:
        """Return the run's own layout on few ranks, in fp32 and in its own precision."""
        config = self._config
        pp, tp, dp = min(self._pp, 2), self._small_tp if self._tp > 1 else 1, min(self._dp or 1, 2)
        if pp * tp * dp > MOST_RANKS:
            self.left_out.append(f"replicas of pp{pp} x tp{tp}: more than {MOST_RANKS} ranks")
            dp = 1
        if pp * tp > MOST_RANKS:
            self.left_out.append(f"pp{pp} together with tp{tp}: more than {MOST_RANKS} ranks")
            pp = 1
        schedule = config.layout.pipeline_schedule if pp > 1 else PipelineSchedule.f1b1
        one = Setting(
            pp,
            tp,
            dp,
            self._micro_batches(dp, 2 * pp if schedule is PipelineSchedule.dualpipev else 1),
            config.layout.sequence_parallel and tp > 1,
            schedule,
            recompute=config.model.recompute,
        )
        dtypes = dict.fromkeys((Dtype.fp32, config.precision.dtype))
        found = [self._sharded(replace(one, dtype=dtype)) for dtype in dtypes]
        if self._dp is None and 2 * pp * tp <= MOST_RANKS and pp * tp > 1:
            # A launcher may start replicas.
            found.append(self._sharded(replace(one, dp=2, micro_batches=max(1, one.micro_batches // 2))))
        return tuple(found)

    def around(self) -> Iterator[Setting]:
        """Yield settings with few axes each, so that those of one axis alone tell which is at fault."""
        config, every = self._config, self.sequences
        yield Setting()
        yield Setting(micro_batches=every)
        if config.model.recompute is not RecomputeKind.none:
            yield Setting(recompute=config.model.recompute)
        if config.runtime.compile:
            yield Setting(compiled=True)
        if config.model.num_layers > 1:
            yield from self._pipelines()
        if self._small_tp > 1:
            yield Setting(tp=self._small_tp)
            yield Setting(tp=self._small_tp, sequence_parallel=True)
        half = max(1, every // 2)
        yield Setting(dp=2)
        for stage in sorted({1, config.zero.stage, *((2, 3) if self._pp == 1 else ())} - {0}):
            yield self._sharded(Setting(dp=2, micro_batches=half), stage)
        dtype = config.precision.dtype
        if dtype is not Dtype.fp32:
            yield self._sharded(Setting(dtype=dtype, micro_batches=every), 1)
            yield self._sharded(Setting(dp=2, dtype=dtype, micro_batches=half))

    def _pipelines(self) -> Iterator[Setting]:
        config, every = self._config, self.sequences
        stages = min(max(self._pp, 2), _STAGES_ALONE, config.model.num_layers)
        yield Setting(pp=stages, micro_batches=every)
        yield Setting(pp=stages)
        if config.model.tied_embeddings:
            yield Setting(pp=stages, micro_batches=every, untied=True)
        if config.model.num_layers >= 4 and config.zero.offload is OffloadKind.none:
            yield Setting(pp=2, micro_batches=every, schedule=PipelineSchedule.dualpipev)
        if config.precision.dtype is not Dtype.fp32 and self._pp > 1:
            dtype = config.precision.dtype
            yield self._sharded(Setting(pp=2, micro_batches=every, dtype=dtype))

    def spelled_as(self, name: str) -> Setting:
        """Return the setting of a layout that a person names.

        Raises:
            ConfigError: it is none, or has too many ranks.
        """
        keys = spelled_layout(name)
        if keys is None or keys["auto"]:
            raise ConfigError(f"--layouts must name layouts such as tp2_pp2, joined by commas, but has {name!r}")
        pp, tp = int(str(keys["pipeline_parallel_size"])), int(str(keys["tensor_parallel_size"]))
        dp = int(str(keys["data_parallel_size"] or 1))
        if pp * tp * dp > MOST_RANKS:
            raise ConfigError(
                f"--layouts must name layouts of at most {MOST_RANKS} ranks, which this machine trains at once, but "
                f"{name} has {pp * tp * dp}; the run's own layout is scaled down without --layouts"
            )
        case = Case(replace(self._config, layout=LayoutConfig(pp, tp, dp, bool(keys["sequence_parallel"]))), None, None)
        problems = [line for rule in (cut_over_tensor_ranks, blocks_for_stages) for line in rule(case)]
        if problems:
            raise ConfigError([f"--layouts has {name}, which this model cannot have: {line}" for line in problems])
        schedule = PipelineSchedule(str(keys["pipeline_schedule"]))
        fewest = max(2, SCHEDULES[schedule].fewest_micro_batches(pp) if pp > 1 else 1)
        one = Setting(pp, tp, dp, fewest, bool(keys["sequence_parallel"]), schedule, dtype=self._config.precision.dtype)
        return self._sharded(replace(one, recompute=self._config.model.recompute))
