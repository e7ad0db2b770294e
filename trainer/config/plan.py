"""RunPlan: every number derived from the config. Derived numbers live only here. No torch.

`make_plan` expects a config that `validate.py` has accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.config.batch_sizes import BatchSizes, batch_sizes
from trainer.config.models import make_execution, make_model
from trainer.config.pipeline_schedules import SCHEDULES, Schedule
from trainer.config.schema import (
    DataConfig,
    DeviceKind,
    Dtype,
    EvalConfig,
    OffloadKind,
    RecordKind,
    RuntimeConfig,
    ScheduleKind,
    TridentConfig,
    ZeroConfig,
)
from trainer.config.step_rates import stepping_of
from trainer.mesh import Mesh
from trainer.spec.execution import Execution
from trainer.spec.frozen import frozen_tensors
from trainer.spec.model import Model
from trainer.spec.stepping import StepGroup, Stepping, StepRule, is_hidden_matrix


@dataclass(frozen=True)
class RunPlan:
    """All numbers of one run. Built once by the entry point, handed down, never changed."""

    config: TridentConfig
    model: Model
    """The model that is trained."""
    execution: Execution
    """The way in which it is computed."""
    mesh: Mesh
    """The places of the ranks."""
    stepping: Stepping
    """The way in which the optimizer steps its tensors."""
    num_micro_batches: int
    """Micro-batches that a rank runs in one optimizer step (gradient accumulation)."""
    tokens_per_step: int
    """Tokens in one optimizer step over all ranks."""
    decay_steps: int
    """Resolved `schedule.decay_steps`."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.size

    @property
    def pipeline_parallel_size(self) -> int:
        """Ranks of the pipe axis."""
        return self.mesh.pipeline_parallel_size

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks of the tensor axis."""
        return self.mesh.tensor_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Ranks of the data axis."""
        return self.mesh.data_parallel_size

    @property
    def dtype(self) -> Dtype:
        """Compute precision."""
        return self.config.precision.dtype

    @property
    def micro_batch_size(self) -> int:
        """Sequences that a rank puts through the model at once."""
        return self.config.batch.micro_batch_size

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimizer step, over all ranks."""
        return self.config.batch.global_batch_size

    @property
    def sequence_parallel(self) -> bool:
        """True if hidden states between layers are sharded over the sequence."""
        return self.config.layout.sequence_parallel

    @property
    def seed(self) -> int:
        """Seed of weights, dropout and the order of data."""
        return self.config.train.seed

    @property
    def trained_parameters(self) -> int:
        """Parameters of the whole model that the run trains, without padding."""
        return sum(tensor.numel for tensor in self.model.tensors.values() if self.execution.trains(tensor))

    @property
    def step_groups(self) -> tuple[StepGroup, ...]:
        """Groups of all tensors of the model, in order; a stage has some of them."""
        return self.stepping.groups(self.model.tensors.values())

    @property
    def moments_per_parameter(self) -> float:
        """Moments and averages that a step reads and writes for each parameter, in the mean over the model."""
        if self.stepping.rule is not StepRule.muon:
            return len(StepGroup(self.stepping.rule, True, 1.0, self.stepping.averages).kept)
        sums = self.model.sums
        if (key := ("hidden matrices",)) not in sums:
            sums[key] = sum(tensor.numel for tensor in self.model.tensors.values() if is_hidden_matrix(tensor))
        return 2 + self.stepping.averages - sums[key] / self.model.parameter_count

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs of one token."""
        return self.model.flops_per_token(self.execution.attended_length, self.execution.frozen)

    @property
    def uses_pipeline_engine(self) -> bool:
        """True with PP > 1, which runs DeepSpeed's PipelineEngine; PP = 1 runs the plain engine with ZeRO 0-3."""
        return self.pipeline_parallel_size > 1

    @property
    def device(self) -> DeviceKind:
        """Kind of device that the user asks for."""
        return self.config.runtime.device

    @property
    def offload(self) -> OffloadKind:
        """Memory that holds ZeRO's optimizer state, and with stage 3 also parameters."""
        return self.config.zero.offload

    @property
    def offloads_parameters(self) -> bool:
        """True if ZeRO-3 keeps its shards of the weights where it offloads the optimizer's state to."""
        return self.config.zero.offload_parameters

    @property
    def is_compiled(self) -> bool:
        """True if torch.compile makes the blocks' programs."""
        return self.config.runtime.compile

    @property
    def name(self) -> str:
        """Name of the model in what is printed."""
        return self.config.model.name

    @property
    def evaluation(self) -> EvalConfig:
        """Texts and tasks of evaluations while the run trains."""
        return self.config.eval

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.train.steps

    @property
    def run_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.batch_sizes.sequences(self.steps) * self.execution.seq_length

    @property
    def batch_sizes(self) -> BatchSizes:
        """Global batch sizes of the steps: `global_batch_size` after the warm-up of the batch."""
        return batch_sizes(self.config.batch, self.execution.seq_length)

    def tokens_of_step(self, step: int) -> int:
        """Return the tokens of a step, counted from 1: `tokens_per_step` after the warm-up of the batch."""
        return self.batch_sizes.at(step) * self.execution.seq_length

    @property
    def sequence_shards(self) -> int:
        """Number of sequence shards of the hidden states between layers: the tensor axis, or 1 if they are whole."""
        return self.tensor_parallel_size if self.sequence_parallel else 1

    @property
    def stage_boundaries(self) -> tuple[int, ...]:
        """First block of each stage but the first, if the user gives them; none for a partition by cost."""
        return self.config.layout.stage_boundaries

    @property
    def schedule(self) -> Schedule:
        """Order of micro-batches over the stages."""
        return SCHEDULES[self.config.layout.pipeline_schedule]

    @property
    def bubble_in_theory(self) -> float:
        """Share of a step in which a pipeline rank computes nothing if all stages are equal: 0 to 1."""
        return self.schedule.bubble(self.pipeline_parallel_size, self.num_micro_batches)

    @property
    def zero(self) -> ZeroConfig:
        """Choices of ZeRO as the user makes them; `zero_stage` is the stage that runs."""
        return self.config.zero

    @property
    def threads_per_rank(self) -> int | None:
        """CPU threads of a rank, if the user says how many."""
        return self.config.runtime.threads_per_rank

    @property
    def zero_stage(self) -> int:
        """Stage that DeepSpeed runs.

        One replica has nothing to shard: in fp32 on the device, stages 1 and 2 would only copy every gradient and
        weight to flat buffers and back, so it runs stage 0. Half precision needs their fp32 master weights.
        """
        zero = self.config.zero
        alone = self.data_parallel_size == 1 and zero.offload is OffloadKind.none
        if alone and zero.stage in (1, 2) and self.config.precision.dtype is Dtype.fp32:
            return 0
        return zero.stage


def data_parallel_size(config: TridentConfig, world_size: int | None) -> int:
    """Return dp: as configured, or as the launched world leaves room for, or 1."""
    layout = config.layout
    if isinstance(layout.data_parallel_size, int):
        return layout.data_parallel_size
    model_parallel = layout.pipeline_parallel_size * layout.tensor_parallel_size
    return 1 if world_size is None else max(1, world_size // model_parallel)


def make_mesh(config: TridentConfig, world_size: int | None = None) -> Mesh:
    """Return where the ranks of a validated config stand.

    Args:
        config: accepted by `validate`.
        world_size: ranks that a launcher started, or None when this process will start them.
    """
    layout = config.layout
    return Mesh(layout.pipeline_parallel_size, data_parallel_size(config, world_size), layout.tensor_parallel_size)


def hang_timeout_s(runtime: RuntimeConfig) -> int:
    """Return `runtime.hang_timeout_s`, or its default."""
    return runtime.timeout_s // 3 if runtime.hang_timeout_s is None else runtime.hang_timeout_s


def make_plan(
    config: TridentConfig, vocab_size: int, world_size: int | None = None, attended: float | None = None
) -> RunPlan:
    """Derive all numbers of a validated config.

    Args:
        config: accepted by `validate`.
        vocab_size: number of token ids (`model.vocab_size`, or the tokenizer's).
        world_size: ranks that a launcher started, or None when this process will start them.
        attended: mean number of tokens, in its sequence, of the document of a token, if it sees no other and that is
            known.
    """
    batch, mesh = config.batch, make_mesh(config, world_size)
    model = make_model(config.model, vocab_size)
    execution = make_execution(config.model, mesh.tensor_parallel_size)
    return RunPlan(
        config=config,
        model=model,
        execution=replace(
            execution,
            documents=keeps_documents_apart(config.data),
            attended=attended,
            frozen=frozen_tensors(model, config.train.frozen),
        ),
        mesh=mesh,
        stepping=stepping_of(config.optimizer, model),
        num_micro_batches=batch.global_batch_size // (batch.micro_batch_size * mesh.data_parallel_size),
        tokens_per_step=batch.global_batch_size * config.model.seq_length,
        decay_steps=resolved_decay_steps(config),
    )


def keeps_documents_apart(data: DataConfig) -> bool:
    """Return whether documents, or examples, that share a sequence do not see each other."""
    return data.mask_documents or data.records is not RecordKind.text


def resolved_decay_steps(config: TridentConfig) -> int:
    """Return `schedule.decay_steps`, or its default for the kind of schedule."""
    if config.schedule.decay_steps is not None:
        return config.schedule.decay_steps
    if config.schedule.kind is ScheduleKind.wsd:
        return max(1, config.train.steps // 10)
    return config.train.steps
