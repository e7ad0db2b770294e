"""The config schema: one frozen dataclass per Hydra group. Keys are declared here and nowhere else.

`register.py` makes mutable twins of these classes for Hydra, which cannot compose frozen ones; the code below the entry
point is handed these frozen objects. No torch, and no project imports but its own parts, `schema_*.py`, and the choices
of the components of a model.
A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.elastic import Elastic
from trainer.config.schema_cluster import ClusterConfig as ClusterConfig
from trainer.config.schema_cluster import Software as Software
from trainer.config.schema_data import BoundaryLabel as BoundaryLabel
from trainer.config.schema_data import DataConfig as DataConfig
from trainer.config.schema_data import DataSource as DataSource
from trainer.config.schema_data import Dedup as Dedup
from trainer.config.schema_data import OnBadRecord as OnBadRecord
from trainer.config.schema_data import OnChange as OnChange
from trainer.config.schema_data import Packing as Packing
from trainer.config.schema_data import RecordKind as RecordKind
from trainer.config.schema_data import TooLong as TooLong
from trainer.config.schema_logging import ConsoleKind as ConsoleKind
from trainer.config.schema_logging import EvalConfig as EvalConfig
from trainer.config.schema_logging import LoggingConfig as LoggingConfig
from trainer.config.schema_logging import WandbMode as WandbMode
from trainer.config.schema_logging import WandbResume as WandbResume
from trainer.config.schema_model import ActivationKind as ActivationKind
from trainer.config.schema_model import LayerAttention as LayerAttention
from trainer.config.schema_model import LoraConfig as LoraConfig
from trainer.config.schema_model import LoraTarget as LoraTarget
from trainer.config.schema_model import ModelConfig as ModelConfig
from trainer.config.schema_model import PositionKind as PositionKind
from trainer.config.schema_model import QueryKeyNorm as QueryKeyNorm
from trainer.config.schema_optimizer import AdamImplementation as AdamImplementation
from trainer.config.schema_optimizer import OptimizerConfig as OptimizerConfig
from trainer.config.schema_runtime import PROFILE_AFTER_STEPS as PROFILE_AFTER_STEPS
from trainer.config.schema_runtime import CpuMatmul as CpuMatmul
from trainer.config.schema_runtime import DeviceKind as DeviceKind
from trainer.config.schema_runtime import LaunchConfig as LaunchConfig
from trainer.config.schema_runtime import RuntimeConfig as RuntimeConfig
from trainer.config.schema_train import SpikePolicy as SpikePolicy
from trainer.config.schema_train import TrainConfig as TrainConfig
from trainer.spec.execution import RecomputeKind as RecomputeKind
from trainer.spec.model import Wiring as Wiring
from trainer.spec.parts import NormKind as NormKind
from trainer.spec.rope import RopeScaling as RopeScaling
from trainer.spec.rope import RopeScalingKind as RopeScalingKind
from trainer.spec.stepping import StepRule as StepRule


class PipelineSchedule(Enum):
    """Order in which the stages run the forward and backward passes of the micro-batches."""

    f1b1 = "1f1b"
    dualpipev = "dualpipev"


class OffloadKind(Enum):
    """Memory that holds ZeRO's optimizer state, and with stage 3 also parameters."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class Dtype(Enum):
    """Number format of forward and backward. Master weights and gradient accumulation are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ScheduleKind(Enum):
    """Curve of the learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"


class TokenizerKind(Enum):
    """`bpe`: a byte-level BPE trained on the data. `bytes`: the 256 byte values. `pretrained`: one that is loaded."""

    bpe = "bpe"
    bytes = "bytes"
    pretrained = "pretrained"


class SaveFailure(Enum):
    """Action when a checkpoint cannot be written; the last one of a run ends it in any case."""

    stop = "stop"
    go_on = "go_on"


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, which turns text into token ids."""

    kind: TokenizerKind = TokenizerKind.bpe
    """bpe | bytes | pretrained."""
    vocab_size: int | None = None
    """bpe: number of entries to train. null: model.vocab_size if set, otherwise 2048."""
    path: str | None = None
    """pretrained: a local folder with a tokenizer.json, or with the vocab.json and merges.txt of GPT-2 and GPT-NeoX; a
    tokenizer.json; or a Hugging Face name."""
    eos_token: str | None = None
    """pretrained: the token that ends a document. null: the one that tokenizer_config.json, special_tokens_map.json or
    generation_config.json beside the tokenizer.json names, in this order; without them the one with a known name."""
    allow_unused_ids: bool = False
    """Accept a model.vocab_size larger than the tokenizer's range (embedding rows that no text uses)."""


@dataclass(frozen=True)
class LayoutConfig:
    """The parallel layout: how ranks share the model. rank = (stage * dp + dp_rank) * tp + tp_rank."""

    pipeline_parallel_size: int = 1
    """Number of pipeline stages; each holds whole blocks."""
    tensor_parallel_size: int = 1
    """Number of ranks that split every linear layer; keep them inside one node."""
    data_parallel_size: int | Elastic | None = None
    """Number of replicas of the model. null: world size / (pp * tp), or 1 when the ranks are started here. auto: the
    same, but when they are started here, as many as there are GPUs for (without GPUs: CPU cores that the container or
    job may use) and as an unchanged batch.global_batch_size allows."""
    sequence_parallel: bool = False
    """Shard norms and residuals over the sequence within the tensor-parallel group."""
    pipeline_schedule: PipelineSchedule = PipelineSchedule.f1b1
    """1f1b | dualpipev (needs num_micro_batches >= 2 * pp)."""
    stage_boundaries: tuple[int, ...] = ()
    """First block of each stage after the first, to override the partition by cost. Empty: partition by cost."""
    auto: bool = False
    """Choose the fastest layout that fits on these machines: the keys above, and of zero, batch.micro_batch_size and
    model.recompute those that no word and no file sets (layout=auto). The run's config.yaml has what was chosen."""


@dataclass(frozen=True)
class ZeroConfig:
    """ZeRO: optimizer state (1), gradients (2) and parameters (3) are sharded over the data-parallel ranks."""

    stage: int = 1
    """ZeRO stage, 0 to 3; 2 and 3 need pipeline_parallel_size=1. Stage 3 gathers a layer when it is computed and gives
    it back at once: at most two blocks (or the largest tensor) are whole at a time, a block is gathered ahead, and
    vectors such as norms and biases stay whole."""
    offload: OffloadKind = OffloadKind.none
    """none | cpu | nvme."""
    offload_parameters: bool = False
    """Stage 3 with offload: keep the parameters there too."""
    nvme_path: str | None = None
    """offload=nvme: a folder on a local NVMe disk."""
    reduce_bucket_size: int | None = None
    """Number of elements reduced in one collective. Every stage has buffers of this size: stage 0 one or two, stages 1
    and 2 two, stage 3 three. null: a sixteenth of the rank's parameters, at least 1M, at most 50M."""
    overlap_comm: bool = True
    """Reduce gradients while backward runs (pp=1 on CUDA)."""


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats of the computation."""

    dtype: Dtype = Dtype.fp32
    """fp32 | bf16 | fp16."""
    initial_scale_power: int = 16
    """fp16: the loss scale starts at 2 to the power of this."""
    loss_scale_window: int = 1000
    """fp16: number of steps without overflow after which the loss scale doubles."""


@dataclass(frozen=True)
class BatchConfig:
    """Batch sizes, in sequences. num_micro_batches = global / (micro * dp) is derived (gradient accumulation)."""

    global_batch_size: int = 16
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Sequences that a rank puts through the model at once."""
    rampup_sizes: tuple[int, ...] = ()
    """Smaller global batch sizes of the run's beginning, in order (batch-size warm-up): fewer micro-batches in a step.
    []: global_batch_size from the first step on."""
    rampup_steps: tuple[int, ...] = ()
    """Last step of each of rampup_sizes, counted from the run's first one."""
    rampup_tokens: tuple[int, ...] = ()
    """Instead of rampup_steps: tokens of the run, with which each of rampup_sizes ends; the step that reaches them is
    its last."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule, in steps."""

    kind: ScheduleKind = ScheduleKind.cosine
    """constant | linear | cosine | wsd."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = 0.1
    """Final learning rate / peak learning rate (linear, cosine, wsd)."""
    decay_steps: int | None = None
    """linear, cosine: number of steps from the start to the minimum (null: train.steps). wsd: length of the decay at
    the end (null: a tenth of train.steps)."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving checkpoints and resuming from them."""

    every: int = 0
    """Number of steps between checkpoints. 0: only at the end and when the run is asked to stop."""
    keep: int = 2
    """Number of newest whole checkpoints that are kept; older ones are deleted."""
    keep_every: int = 0
    """Checkpoints at multiples of this number of steps are kept for good, besides the newest. 0: none."""
    asynchronous: bool = True
    """Hold the loop only while the state is copied to host memory, and write it while training goes on."""
    on_failure: SaveFailure = SaveFailure.stop
    """stop | go_on. For example on a full disk: stop ends the run (exit 8), go_on trains on until the next one."""
    save_final: bool = True
    """Write a checkpoint when the last step is done."""
    with_base: bool = False
    """LoRA: write the frozen weights into every checkpoint. false: only the adapters, and where the weights are that
    they are added to, with their hash; these must stay there as they are."""
    resume: str = "auto"
    """The start of a run that has no checkpoint of its own in run_dir; a run that has one goes on from its newest,
    whatever this says. auto: step 1. never: step 1, and run_dir must not hold a run that this command did not begin. A
    path (a run's folder or a checkpoint): that checkpoint's step, with its optimizer and its place in the data."""
    init_from: str | None = None
    """A run's folder, a checkpoint, or the folder or hub name of a Hugging Face model (docs/models.md), with whose
    weights a run begins, at step 1, with a fresh optimizer and a learning-rate schedule and data of its own. It cannot
    be combined with a path in checkpoint.resume. Like that key, it counts only until the run has a checkpoint of its
    own in run_dir."""


@dataclass(frozen=True)
class TridentConfig:
    """The whole config: one field per group."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    name: str = "default"
    """Name of the run."""
    run_dir: str = "runs/${name}"
    """Folder of the run: config, checkpoints, metrics and logs."""
